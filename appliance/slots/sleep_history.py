"""Which sleep levels work: in memory for decisions, in the store for the next start."""

from appliance.protocol.sleep import SleepLevel, SleepVerdict
from appliance.store.database import Database
from appliance.store.sleep import all_verdicts, put_verdict


class SleepHistory:
    """Verdicts by configuration and version of vLLM."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._verdicts: dict[str, dict[SleepLevel, SleepVerdict]] = {}

    async def load(self) -> None:
        """Read them from the store."""
        for key, verdict in await self._database.read(all_verdicts):
            self._verdicts.setdefault(key, {})[verdict.level] = verdict

    def of(self, fingerprint: str, vllm_version: str) -> dict[SleepLevel, SleepVerdict]:
        """What is known, by level."""
        return dict(self._verdicts.get(_key(fingerprint, vllm_version), {}))

    async def add(self, model: str, fingerprint: str, verdict: SleepVerdict) -> None:
        """Remember a verdict for good; the newest one counts."""
        key = _key(fingerprint, verdict.vllm_version)
        self._verdicts.setdefault(key, {})[verdict.level] = verdict
        await self._database.write(lambda: put_verdict(model, key, verdict))


def _key(fingerprint: str, vllm_version: str) -> str:
    return f"{fingerprint} vllm-{vllm_version}"
