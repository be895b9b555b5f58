"""Puts idle engines to sleep instead of ending them, and wakes them. Part of the scheduler.

Whatever goes wrong with a sleep or a wake ends the engine: who waits for its model is answered by a
fresh one. What was found out is kept, so that a level that does not work is not tried twice.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime

from appliance.engine.command import can_sleep
from appliance.errors import ConflictError, DeviceError
from appliance.gpu.cpu import machine_memory
from appliance.protocol.engines import EngineState
from appliance.protocol.events import AlertRaised, Event
from appliance.protocol.sleep import SleepLevel, SleepVerdict
from appliance.protocol.system import Alert
from appliance.registry.registry import Registry
from appliance.slots.board import SlotBoard
from appliance.slots.history import fingerprint
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.sleep_history import SleepHistory
from appliance.slots.slot import Running, Slot
from appliance.slots.tiers import Sleep, Sleepy, choose_tier

logger = logging.getLogger(__name__)


class SleepTier:
    """The engines between ready and unloaded. `host_limit_bytes` is the RAM they may take."""

    def __init__(
        self,
        *,
        registry: Registry,
        board: SlotBoard,
        monitor: DeviceMonitor,
        history: SleepHistory,
        host_limit_bytes: int,
        own: Callable[[Coroutine[object, object, None]], object],
        woke: Callable[[Slot], None],
        publish: Callable[[Event], None],
    ) -> None:
        self._registry = registry
        self._board = board
        self._monitor = monitor
        self._history = history
        self._host_limit_bytes = host_limit_bytes
        self._own = own
        self._woke = woke
        self._publish = publish

    def retire(self, slot: Slot, running: Running, reason: str) -> None:
        """An engine that has nothing to do gives up its place: it falls asleep, or ends."""
        if running.is_falling_asleep:
            return
        # Somebody waits for the memory of one that is evicted: no time for others to end first.
        is_idle = running.drained_for is None and not running.is_evicted
        wanted = self._tier(running, may_stop=is_idle)
        if wanted is None:
            running.supervisor.stop(reason)
            return
        running.is_falling_asleep = True
        self._own(self._fall_asleep(slot, running, wanted, reason))

    def check(self, running: Running, level: SleepLevel | None) -> None:
        """Whether a person may put it to sleep. Raises ConflictError."""
        supervisor = running.supervisor
        model = supervisor.model
        if not can_sleep(supervisor.spec.settings, supervisor.environment):
            name = supervisor.environment.name
            raise ConflictError(
                f"{model!r} cannot sleep: its engine was started without sleep mode.",
                hint=f"The setting `sleep` must not be `off`, and the engine environment {name}"
                " must have sleep mode, which vLLM has on GPUs.",
            )
        if supervisor.state is not EngineState.READY or running.is_leaving:
            raise ConflictError(
                f"{model!r} cannot be put to sleep: it is {supervisor.state}.",
                hint="Only a model that is ready can be put to sleep.",
            )
        running.sleep_level = level or 0
        if self._tier(running, may_stop=True) is None:
            running.sleep_level = None
            raise ConflictError(
                f"{model!r} cannot be put to sleep: the RAM for sleeping models is taken.",
                hint="Use level 2, unload another sleeping model, or raise slots.sleep_memory.",
            )

    def wake(self, slot: Slot, running: Running, turn_s: float) -> None:
        """Somebody waits for it, and there is room."""
        running.turn_s = turn_s
        # Before its task has begun, it may be decided again.
        running.is_waking = True
        slot.waits_for = None
        self._own(self._wake(slot, running))

    async def _fall_asleep(self, slot: Slot, running: Running, how: Sleep, reason: str) -> None:
        supervisor = running.supervisor
        verdict = None
        try:
            await self._end_others(how.stops, supervisor.model)
            if not supervisor.is_stopping:
                measure = self._monitor.meter(running)
                verdict = await supervisor.sleeper.sleep(how.level, reason, measure)
        except DeviceError as error:
            reason = f"{reason}; its memory could not be measured: {error}"
        except Exception as error:  # a bug must not keep the engine from going
            logger.exception("engine.sleep_lost model=%s", supervisor.model)
            reason = f"{reason}; the server failed to put it to sleep: {error}"
        running.is_falling_asleep, running.sleep_level = False, None
        if supervisor.state is EngineState.ASLEEP:
            running.drain_reason, running.drain_since, running.drained_for = None, None, None
            running.is_evicted = False
            running.keep_alive_s = None
            supervisor.memory_bytes = supervisor.sleeper.residue_bytes
        else:
            supervisor.stop(reason)
        await self._note(running, verdict)
        self._board.touch(slot)
        self._board.tell(slot)

    async def _wake(self, slot: Slot, running: Running) -> None:
        verdict = None
        try:
            verdict = await running.supervisor.sleeper.wake("wanted")
        except Exception as error:  # those who wait must not wait for ever
            logger.exception("engine.wake_lost model=%s", slot.model)
            running.supervisor.stop(f"the server failed to wake it: {error}")
        running.is_waking = False
        if running.supervisor.state is EngineState.READY:
            running.measured_at = 0.0
            self._woke(slot)
        await self._note(running, verdict)
        self._board.touch(slot)

    async def _end_others(self, engine_ids: tuple[str, ...], model: str) -> None:
        ending = [each for each in self._board.running() if each.supervisor.id in engine_ids]
        for each in ending:
            each.supervisor.stop(f"its RAM is needed for {model} to sleep")
        if ending:
            await asyncio.wait({each.task for each in ending})

    async def _note(self, running: Running, verdict: SleepVerdict | None) -> None:
        if verdict is None:
            return
        supervisor = running.supervisor
        await self._history.add(supervisor.model, _fingerprint(running), verdict)
        if verdict.works:
            return
        logger.warning(
            "engine.sleep_failed model=%s level=%s reason=%s",
            supervisor.model, verdict.level, verdict.reason,
        )  # fmt: skip
        alert = Alert(
            id=f"sleep:{supervisor.model}",
            at=datetime.now(UTC),
            severity="warning",
            message=f"{supervisor.model} does not sleep well at level {verdict.level}:"
            f" {verdict.reason}.",
            hint=f"It is unloaded instead. To try again: appliance sleep {supervisor.model}"
            f" --level {verdict.level}",
            model=supervisor.model,
            engine_id=supervisor.id,
        )
        self._publish(AlertRaised(alert=alert))

    def _tier(self, running: Running, *, may_stop: bool) -> Sleep | None:
        supervisor = running.supervisor
        if supervisor.state not in {EngineState.READY, EngineState.DRAINING}:
            return None
        others = [self._sleepy(each) for each in self._board.running() if each is not running]
        own = self._sleepy(running)
        limit_bytes = self._host_limit_bytes
        try:
            held_bytes = own.host_bytes + sum(each.host_bytes for each in others)
            # What is pinned for good may not be more than the machine has left.
            limit_bytes = min(limit_bytes, held_bytes + machine_memory()[1])
        except DeviceError as error:
            logger.warning("devices.unreadable message=%s", error)
            limit_bytes = 0
        return choose_tier(own, others, limit_bytes, may_stop=may_stop)

    def _sleepy(self, running: Running) -> Sleepy:
        supervisor = running.supervisor
        setting = self._registry.get(supervisor.model).settings.sleep
        verdicts = self._history.of(_fingerprint(running), supervisor.environment.vllm_version)
        if running.sleep_level is not None:
            # A person wants to know it again.
            setting = running.sleep_level or ("auto" if setting == "off" else setting)
            verdicts = {}
        if not can_sleep(supervisor.spec.settings, supervisor.environment):
            setting = "off"
        return Sleepy(
            engine_id=supervisor.id,
            setting=setting,
            verdicts=verdicts,
            weights_bytes=supervisor.spec.weights_bytes,
            host_bytes=supervisor.sleeper.host_bytes,
            is_asleep=supervisor.state is EngineState.ASLEEP,
            last_used=running.last_used,
        )


def _fingerprint(running: Running) -> str:
    """Of what runs, whatever the settings are by now."""
    spec = running.supervisor.spec
    name = running.supervisor.environment.name
    own = fingerprint(spec.model, spec.settings, name, spec.context_length)
    return f"{own} tp-{running.supervisor.placement.tp_size}"
