"""From launch to end: what happens to a slot when its engine starts, is ready, ends."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from appliance.config.settings import EngineSettings
from appliance.engine.supervisor import EngineSupervisor
from appliance.errors import DoesNotFitError, EngineEnvironmentError, UnavailableError
from appliance.estimate.estimator import Estimate
from appliance.protocol.engines import Failure, FailureCause
from appliance.protocol.events import AlertRaised, Event, Swapped
from appliance.protocol.system import Alert
from appliance.registry.registry import KnownModel, Registry
from appliance.slots.board import SlotBoard
from appliance.slots.history import LoadHistory
from appliance.slots.launcher import EngineLauncher
from appliance.slots.leases import LeaseDesk, load_failed
from appliance.slots.measuring import measure_load
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.plans import DeviceRoom
from appliance.slots.read_ahead import ReadAhead
from appliance.slots.slot import Running, Slot

logger = logging.getLogger(__name__)


class EngineLives:
    """Runs the engines' tasks; part of the scheduler."""

    def __init__(
        self,
        *,
        board: SlotBoard,
        desk: LeaseDesk,
        registry: Registry,
        launcher: EngineLauncher,
        monitor: DeviceMonitor,
        history: LoadHistory,
        settings: EngineSettings,
        publish: Callable[[Event], None],
    ) -> None:
        self._board = board
        self._desk = desk
        self._registry = registry
        self._launcher = launcher
        self._monitor = monitor
        self._history = history
        self._settings = settings
        self._publish = publish
        self._read_ahead = ReadAhead()
        self._tasks: set[asyncio.Task[None]] = set()

    async def finish(self) -> None:
        """Until every engine's task is over."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._read_ahead.stop()

    def prepare(self, known: KnownModel) -> None:
        """It is about to be launched: its weights may come from disk meanwhile."""
        self._read_ahead.begin(known.id, Path(known.settings.path))

    def launch(
        self,
        slot: Slot,
        known: KnownModel,
        rooms: tuple[DeviceRoom, ...],
        wanted: Estimate,
        turn_s: float,
    ) -> None:
        """Start an engine for the slot, which then keeps its place for `turn_s` seconds."""
        try:
            supervisor = self._launcher.prepare(
                known,
                rooms,
                self._monitor.kind,
                wanted,
                slot.series.in_row + 1,
                keep_logs_of={each.id for each in slot.ended()},
            )
        except EngineEnvironmentError as error:
            self.give_up(slot, FailureCause.NO_ENVIRONMENT, error.message, error.hint)
            return
        slot.waits_for = None
        slot.is_held = False
        self.prepare(known)
        task = self.own(self._live(slot, supervisor))
        slot.running = Running(supervisor, wanted, task, last_used=time.monotonic(), turn_s=turn_s)
        self._board.touch(slot)

    def give_up(self, slot: Slot, cause: FailureCause, message: str, hint: str) -> None:
        """It cannot be started as things are: tell all who wait, try again later if wanted."""
        fits = cause is not FailureCause.DOES_NOT_FIT
        failure = Failure(cause=cause, message=message, hint=hint, at=datetime.now(UTC))
        if fits:
            pause = self._count(slot, failure, supervisor=None, ready_s=None)
        else:
            # Who asks later is answered by the memory that is there then.
            pause = self._settings.retry_first_s
        self._fail_slot(slot, failure, pause)
        if fits:
            self._desk.fail_all(slot, lambda: load_failed(slot.model, failure, pause))
        else:
            self._desk.fail_all(slot, lambda: DoesNotFitError(message, hint=hint))
        self._swap_over(slot)
        self._board.touch(slot)

    async def _live(self, slot: Slot, supervisor: EngineSupervisor) -> None:
        try:
            await supervisor.run(lambda: self._became_ready(slot))
            running = slot.running
            if running is not None and not await self._monitor.wait_freed(running):
                logger.error("engine.memory_not_freed model=%s", slot.model)
        finally:
            self._read_ahead.end(slot.model)
            if slot.running is not None:
                self._ended(slot, slot.running)

    def _became_ready(self, slot: Slot) -> None:
        running = slot.running
        assert running is not None
        self._serves(slot, running)
        self.own(self._remember(running))

    def woke(self, slot: Slot) -> None:
        """Its engine is back from sleep."""
        if slot.running is not None:
            self._serves(slot, slot.running)

    def _serves(self, slot: Slot, running: Running) -> None:
        """Loaded or woken: it takes the requests that waited for it."""
        self._read_ahead.end(slot.model)
        now = time.monotonic()
        running.ready_since = running.last_used = now
        slot.wanted_since, slot.failure, slot.retry_at = None, None, None
        self._desk.grant_all(slot, running)
        if slot.swap_started is not None and slot.swap_evicted:
            duration_s = round(now - slot.swap_started, 3)
            logger.info(
                "slots.swapped model=%s evicted=%s duration_s=%s",
                slot.model, ",".join(slot.swap_evicted), duration_s,
            )  # fmt: skip
            self._publish(
                Swapped(
                    at=datetime.now(UTC),
                    model=slot.model,
                    evicted=slot.swap_evicted,
                    duration_s=duration_s,
                )
            )
        self._swap_over(slot)
        self._board.touch(slot)

    def _ended(self, slot: Slot, running: Running) -> None:
        supervisor = running.supervisor
        is_over = slot.is_series_over(time.monotonic())
        slot.running = None
        self._board.keep_ended(slot, last=supervisor, first=slot.first)
        worked = supervisor.failure is None and running.ready_since is not None
        if is_over or worked:
            # Earlier failures are history.
            slot.series, slot.first_failure = slot.series.after_success(), None
            self._board.keep_ended(slot, last=supervisor, first=None)
        if supervisor.failure is not None:
            self._ended_by_failure(slot, running, supervisor.failure)
        elif not worked:
            self._swap_over(slot)
            self._desk.fail_all(
                slot,
                lambda: UnavailableError(
                    f"The load of {slot.model!r} was stopped.", hint="Ask again."
                ),
            )
        self._board.touch(slot)
        self._board.tell(slot)

    def _ended_by_failure(self, slot: Slot, running: Running, failure: Failure) -> None:
        was_ready = running.ready_since is not None
        ready_s = None if running.ready_since is None else time.monotonic() - running.ready_since
        pause = self._count(slot, failure, supervisor=running.supervisor, ready_s=ready_s)
        self._fail_slot(slot, failure, pause)
        self._swap_over(slot)
        if not was_ready or pause is None:
            self._desk.fail_all(slot, lambda: load_failed(slot.model, failure, pause))

    def _count(
        self,
        slot: Slot,
        failure: Failure,
        *,
        supervisor: EngineSupervisor | None,
        ready_s: float | None,
    ) -> float | None:
        """One more failure in the slot's series; the pause that follows, None: a person acts."""
        slot.series = slot.series.after_failure(time.monotonic(), ready_s)
        if slot.first_failure is None:
            slot.first_failure = failure
            self._board.keep_ended(slot, last=slot.last, first=supervisor)
        return slot.series.pause_s(
            was_ready=ready_s is not None,
            first_s=self._settings.retry_first_s,
            most_s=self._settings.retry_most_s,
            max_attempts=self._settings.max_attempts,
        )

    def _fail_slot(self, slot: Slot, failure: Failure, pause: float | None) -> None:
        """Remember and announce why; `pause` None: until a person acts."""
        # What is free changes all the time, and with it the words of what does not fit.
        said, fits = slot.failure, failure.cause is not FailureCause.DOES_NOT_FIT
        is_news = said is None or said.cause is not failure.cause
        is_news = is_news or (fits and said is not None and said.message != failure.message)
        slot.wanted_since, slot.waits_for = None, None
        slot.retry_at = None if pause is None else time.monotonic() + pause
        retry = None if pause is None else datetime.now(UTC) + timedelta(seconds=pause)
        slot.failure = msgspec.structs.replace(failure, attempts=slot.series.in_row, retry_at=retry)
        if is_news:
            alert = Alert(
                id=f"failure:{slot.model}",
                at=failure.at,
                severity="error",
                message=f"{slot.model}: {failure.message}",
                hint=failure.hint,
                model=slot.model,
                engine_id=failure.engine_id,
            )
            self._publish(AlertRaised(alert=alert))

    async def _remember(self, running: Running) -> None:
        await self._history.add(await measure_load(running, self._monitor))

    def own(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """A task that `finish` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def _swap_over(slot: Slot) -> None:
        slot.swap_started, slot.swap_evicted = None, []
