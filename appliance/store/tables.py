"""Rows. Structs of the protocol are stored as JSON text where nothing is searched in them."""

from peewee import (
    AutoField,
    BooleanField,
    CompositeKey,
    FloatField,
    IntegerField,
    Model,
    TextField,
)


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
    configuration = TextField(default="")
    rank_bytes = IntegerField(default=0)
    kv_cache_bytes = IntegerField(default=0)
    weights_bytes = IntegerField(default=0)
    graphs_bytes = IntegerField(default=0)

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


class FileRow(Model):
    """A file of the Files API; its content is a file on disk of the same id."""

    number = AutoField()
    """Order of creation, where the seconds are the same."""
    id = TextField(unique=True)
    created_at = IntegerField()
    expires_at = IntegerField(null=True, index=True)
    purpose = TextField()
    object = TextField()

    class Meta:
        """Table name."""

        table_name = "files"


class BatchRow(Model):
    """A batch as it was stored last."""

    number = AutoField()
    id = TextField(unique=True)
    created_at = IntegerField()
    is_final = BooleanField(index=True)
    object = TextField()

    class Meta:
        """Table name."""

        table_name = "batches"


class PullRow(Model):
    """A pull as it was stored last."""

    number = AutoField()
    id = TextField(unique=True)
    is_final = BooleanField(index=True)
    object = TextField()

    class Meta:
        """Table name."""

        table_name = "pulls"


TABLES = [ModelRow, EngineRunRow, KeyRow, SleepVerdictRow, FileRow, BatchRow, PullRow]
