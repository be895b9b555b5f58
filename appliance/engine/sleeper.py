"""An engine's way to sleep and back through its states; what fails ends the engine."""

from collections.abc import Awaitable, Callable

from appliance.engine.sleep import EngineSleep, SleepError, SleepFault
from appliance.engine.transitions import EngineStates
from appliance.protocol.engines import EngineState
from appliance.protocol.sleep import SleepLevel, SleepVerdict


class Sleeper:
    """Part of the supervisor; `end` stops the engine at once, for a reason."""

    def __init__(
        self,
        sleep: EngineSleep,
        states: EngineStates,
        *,
        is_stopping: Callable[[], bool],
        end: Callable[[str], None],
    ) -> None:
        self._sleep = sleep
        self._states = states
        self._is_stopping = is_stopping
        self._end = end

    @property
    def level(self) -> SleepLevel | None:
        """While it is asleep."""
        return self._sleep.level if self._states.now is EngineState.ASLEEP else None

    @property
    def host_bytes(self) -> int:
        """RAM that it holds beside its processes' own, all ranks."""
        return self._sleep.host_bytes

    @property
    def residue_bytes(self) -> int:
        """What it holds on its devices while it is asleep, all ranks."""
        return self._sleep.residue_bytes

    async def sleep(
        self, level: SleepLevel, reason: str, measure: Callable[[], Awaitable[int]]
    ) -> SleepVerdict | None:
        """From ready or draining to asleep; `measure` says what it holds on its devices in bytes.

        A verdict tells that it failed, and the engine ends. Only a wake proves that it works.
        """
        self._states.to(EngineState.DRAINING, reason)
        if self._states.now is not EngineState.DRAINING:
            return None
        try:
            await self._sleep.fall_asleep(level, measure)
        except SleepError as error:
            if error.fault is SleepFault.BUSY:
                self._states.to(EngineState.READY, f"not put to sleep: {error}")
                return None
            return self._failed(error, "could not be put to sleep")
        self._states.to(EngineState.ASLEEP, f"{reason}; level {level}")
        return None

    async def wake(self, reason: str) -> SleepVerdict | None:
        """From asleep to ready. The verdict says whether it works; if not, the engine ends.

        None: it is on its way out for another reason.
        """
        self._states.to(EngineState.WAKING, reason)
        if self._states.now is not EngineState.WAKING:
            return None
        try:
            await self._sleep.wake()
        except SleepError as error:
            return self._failed(error, "could not be woken")
        verdict = self._sleep.verdict(None)
        self._states.to(EngineState.READY, f"woke in {verdict.wake_s:.1f} s")
        return verdict

    def _failed(self, error: SleepError, what: str) -> SleepVerdict | None:
        if self._is_stopping():
            return None
        verdict = self._sleep.verdict(error)
        self._end(f"{what}: {error}")
        return verdict
