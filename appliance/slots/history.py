"""How long earlier loads took: in memory for estimates, in the store for the next start."""

import hashlib
from collections import deque
from statistics import median

import msgspec

from appliance.estimate.measured import Measurement
from appliance.protocol.models import ModelSettings
from appliance.store.database import Database
from appliance.store.models import LoadRecord, add_load, all_loads

_KEPT = 8


class LoadHistory:
    """Loads by the fingerprint of their configuration."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loads: dict[str, deque[LoadRecord]] = {}
        self._of_model: dict[str, dict[str, deque[LoadRecord]]] = {}
        """The same by model."""
        self._medians: dict[str, float] = {}
        self._changes: dict[str, int] = {}
        self._newest: dict[str, str] = {}
        """For each configuration the fingerprint that was measured last."""

    async def load(self) -> None:
        """Read the newest loads from the store."""
        records = await self._database.read(lambda: all_loads(_KEPT))
        for record in sorted(records, key=lambda each: each.at):
            self._remember(record)

    def of(self, fingerprint: str) -> list[LoadRecord]:
        """Earlier loads of this configuration, oldest first."""
        return list(self._loads.get(fingerprint, ()))

    def of_model(self, model: str) -> list[LoadRecord]:
        """Earlier loads of a model in any configuration."""
        return [load for loads in self._of_model.get(model, {}).values() for load in loads]

    def changes(self, model: str) -> int:
        """How often a load was remembered: what was worked out before that may be different."""
        return self._changes.get(model, 0)

    def median_load_s(self, model: str) -> float | None:
        """Seconds, or None if it was never loaded here."""
        known = self._medians.get(model)
        if known is None and (loads := self.of_model(model)):
            known = round(median(load.load_s for load in loads), 1)
            self._medians[model] = known
        return known

    def measurements(self, configuration: str) -> list[Measurement]:
        """What engines of this configuration took in the environment of the newest of them."""
        newest = self._newest.get(configuration)
        return [
            Measurement(
                rank_bytes=load.rank_bytes,
                kv_cache_bytes=load.kv_cache_bytes,
                weights_bytes=load.weights_bytes,
                graphs_bytes=load.graphs_bytes,
            )
            for load in self.of(newest or "")
            if load.rank_bytes > 0
        ]

    async def add(self, record: LoadRecord) -> None:
        """Remember a load for good."""
        self._remember(record)
        await self._database.write(lambda: add_load(record))

    def _remember(self, record: LoadRecord) -> None:
        loads = self._loads.setdefault(record.fingerprint, deque(maxlen=_KEPT))
        loads.append(record)
        self._of_model.setdefault(record.model, {})[record.fingerprint] = loads
        self._medians.pop(record.model, None)
        self._changes[record.model] = self.changes(record.model) + 1
        if record.rank_bytes > 0:
            self._newest[record.configuration] = record.fingerprint


def fingerprint(model: str, settings: ModelSettings, environment: str, context: int) -> str:
    """Hash of all that decides how long a load takes and how much memory the engine needs."""
    relevant = msgspec.json.encode(
        [
            model, environment, context, settings.path, settings.dtype, settings.tp_size,
            settings.kv_cache_bytes, settings.max_sequences, settings.extra_args,
            sorted(settings.env.items()),
        ]
    )  # fmt: skip
    return hashlib.sha256(relevant).hexdigest()[:16]
