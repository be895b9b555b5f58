"""Rows. Structs of the protocol are stored as JSON text where nothing is searched in them."""

from peewee import BooleanField, CompositeKey, FloatField, IntegerField, Model, TextField


class ModelRow(Model):
    """A known model and the settings that its owner chose."""

    id = TextField(primary_key=True)
    settings = TextField()
    created_at = TextField()

    class Meta:
        """Table name."""

        table_name = "models"


class EngineRunRow(Model):
    """One load that succeeded: how long it took, for estimates of the next one."""

    id = IntegerField(primary_key=True)
    model = TextField(index=True)
    fingerprint = TextField(index=True)
    """Model, placement and environment; loads with the same one take about the same time."""
    load_s = FloatField()
    phases = TextField()
    """JSON: phase to seconds."""
    memory_bytes = IntegerField()
    at = TextField()

    class Meta:
        """Table name."""

        table_name = "engine_runs"


class KeyRow(Model):
    """An API key, stored as a hash."""

    id = TextField(primary_key=True)
    name = TextField()
    prefix = TextField()
    digest = TextField(unique=True)
    scope = TextField()
    created_at = TextField()
    revoked = BooleanField(default=False)

    class Meta:
        """Table name."""

        table_name = "keys"


class SleepVerdictRow(Model):
    """What is known about one sleep level of a configuration with one version of vLLM."""

    fingerprint = TextField()
    level = IntegerField()
    model = TextField(index=True)
    verdict = TextField()

    class Meta:
        """Table name and key."""

        table_name = "sleep_verdicts"
        primary_key = CompositeKey("fingerprint", "level")


TABLES = [ModelRow, EngineRunRow, KeyRow, SleepVerdictRow]
