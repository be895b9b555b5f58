"""Which sleep levels work: in memory for decisions, in the store for the next start."""

from appliance.protocol.sleep import SleepLevel, SleepVerdict
from appliance.store.database import Database
from appliance.store.sleep import all_verdicts, put_verdict


class SleepHistory:
    """Verdicts by configuration and version of vLLM."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._verdicts: dict[str, dict[SleepLevel, SleepVerdict]] = {}
        self._newest: dict[str, dict[SleepLevel, SleepVerdict]] = {}
        """By model."""

    async def load(self) -> None:
        """Read them from the store."""
        for model, key, verdict in await self._database.read(all_verdicts):
            self._remember(model, key, verdict)

    def of(self, fingerprint: str, vllm_version: str) -> dict[SleepLevel, SleepVerdict]:
        """What is known, by level."""
        return dict(self._verdicts.get(_key(fingerprint, vllm_version), {}))

    def of_model(self, model: str) -> list[SleepVerdict]:
        """What was found out last about each level, with any configuration."""
        return [verdict for _, verdict in sorted(self._newest.get(model, {}).items())]

    def wake_s(self, model: str) -> float | None:
        """Seconds that its last wake took, at the level that wakes fastest; None: not known."""
        known = [
            verdict.wake_s
            for verdict in self.of_model(model)
            if verdict.works and verdict.wake_s is not None
        ]
        return min(known, default=None)

    async def add(self, model: str, fingerprint: str, verdict: SleepVerdict) -> None:
        """Remember a verdict for good; the newest one counts."""
        key = _key(fingerprint, verdict.vllm_version)
        self._remember(model, key, verdict)
        await self._database.write(lambda: put_verdict(model, key, verdict))

    def _remember(self, model: str, key: str, verdict: SleepVerdict) -> None:
        self._verdicts.setdefault(key, {})[verdict.level] = verdict
        newest = self._newest.setdefault(model, {})
        before = newest.get(verdict.level)
        if before is None or before.at <= verdict.at:
            newest[verdict.level] = verdict


def _key(fingerprint: str, vllm_version: str) -> str:
    return f"{fingerprint} vllm-{vllm_version}"
