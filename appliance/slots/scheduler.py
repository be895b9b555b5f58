"""The one task that owns slots: who waits, who is loaded where, who has to go.

All methods run on the event loop and decisions are made in one place (`_step`), so there are no
locks. Everyone else holds leases, reads the board and listens to events.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from appliance.config.settings import EngineSettings, SlotSettings
from appliance.engine.connection import EngineConnections
from appliance.errors import ConflictError, ModelNotFoundError, UnavailableError
from appliance.gpu.cpu import machine_memory
from appliance.protocol.engines import FailureCause
from appliance.protocol.events import Event, ModelRemoved
from appliance.protocol.sleep import SleepLevel
from appliance.registry.registry import Registry
from appliance.slots.actions import SlotActions
from appliance.slots.batch_work import BatchWork
from appliance.slots.board import SlotBoard
from appliance.slots.decision import Policy, Wish, decide
from appliance.slots.history import LoadHistory
from appliance.slots.launcher import EngineLauncher
from appliance.slots.leases import Lease, LeaseDesk
from appliance.slots.lives import EngineLives
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.plans import DeviceRoom
from appliance.slots.sleep_history import SleepHistory
from appliance.slots.sleep_tier import SleepTier
from appliance.slots.slot import Priority, Slot

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_LEAST_S = 0.01
# So much longer than a decision took, none follows: it gets a fifth of the loop's time at most.
_REST = 4
# A person who reads an answer comes back.
_PEOPLE_STAY_S = 10.0


class SlotScheduler:
    """Owner of all slots; `board` is what others read."""

    def __init__(
        self,
        *,
        registry: Registry,
        launcher: EngineLauncher,
        monitor: DeviceMonitor,
        history: LoadHistory,
        sleep_history: SleepHistory,
        slots: dict[str, Slot],
        settings: SlotSettings,
        engines: EngineSettings,
        publish: Callable[[Event], None],
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._publish = publish
        self._slots = slots
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.board = SlotBoard(
            registry=registry,
            monitor=monitor,
            history=history,
            sleep_history=sleep_history,
            settings=settings,
            slots=slots,
            publish=publish,
        )
        self.batches = BatchWork(self.board)
        self._desk = LeaseDesk(
            max_queue=settings.max_queue,
            queue_timeout_s=settings.queue_timeout_s,
            changed=self.board.touch,
            used=lambda slot: self.board.mark_changed(slot.model),
            expected_wait=self.board.expected_wait_s,
        )
        self._lives = EngineLives(
            board=self.board,
            desk=self._desk,
            registry=registry,
            launcher=launcher,
            monitor=monitor,
            history=history,
            settings=engines,
            publish=publish,
        )
        self._tier = SleepTier(
            registry=registry,
            board=self.board,
            monitor=monitor,
            history=sleep_history,
            host_limit_bytes=settings.sleep_memory_bytes or machine_memory()[0] // 4,
            own=self._lives.own,
            woke=self._lives.woke,
            publish=publish,
        )
        self._actions = SlotActions(
            registry=registry,
            board=self.board,
            desk=self._desk,
            lives=self._lives,
            tier=self._tier,
            drain_limit_s=settings.drain_limit_s,
        )
        self._policy = Policy(
            max_wait_s=settings.max_wait_s,
            batch_max_wait_s=settings.batch_max_wait_s,
            min_loaded_s=settings.min_loaded_s,
            batch_turn_s=settings.batch_turn_s,
        )

    def start(self) -> None:
        """Begin to decide; always-on models start to load."""
        self._task = asyncio.create_task(self._run(), name="slots")

    @property
    def in_flight(self) -> int:
        """Requests that engines work on."""
        return sum(each.in_flight for each in self.board.running())

    async def drain(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Grant nothing any more and wait until the requests in flight are over.

        No longer than `timeout_s`, and not at all once `hurry` is set.
        """
        self._stopping = True
        self._desk.close()
        for slot in self._slots.values():
            slot.wanted_since = None
            self._desk.fail_all(slot, lambda: UnavailableError("The server is shutting down."))
        deadline = time.monotonic() + timeout_s
        while self.in_flight and not hurry.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            await _wait_for(self.board.wake, min(left, 0.1))
            self.board.wake.clear()

    async def stop(self) -> None:
        """End all engines; returns when none is left."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for each in self.board.running():
            each.supervisor.stop("the server stops")
        await self._lives.finish()

    @asynccontextmanager
    async def lease(
        self,
        model: str,
        priority: Priority = Priority.PEOPLE,
        *,
        keep_alive_s: float | None = None,
    ) -> AsyncIterator[Lease]:
        """The way to an engine: loads on demand, waits in the queue, counts what is in flight.

        Work of batches comes after that of people, but is not put off for ever. From its grant on
        `keep_alive_s` is the engine's idle timeout (negative: it stays; None: as before); pinned
        and always-on models stay in any case.

        Raises ModelNotFoundError, QueueFullError, LoadFailedError, DoesNotFitError and
        UnavailableError.
        """
        slot = self._open_slot(model)
        now = time.monotonic()
        self.board.rate.add(now)
        if priority is Priority.PEOPLE:
            slot.arrivals.add(now)
        lease = await self._desk.acquire(slot, priority, keep_alive_s)
        try:
            yield lease
        finally:
            self._desk.release(lease, slot)
            self._actions.stop_if_drained(lease.running)
            if lease.running.keep_alive_s == 0:
                self.unload_idle()

    def is_ready(self, model: str) -> bool:
        """Whether a lease would be granted at once."""
        slot = self._slots.get(model)
        return slot is not None and slot.running is not None and slot.running.takes_requests

    def has_people(self, model: str) -> bool:
        """Whether people use the model now, or did a moment ago."""
        slot = self._slots.get(model)
        if slot is None:
            return False
        running = slot.running
        is_used = running is not None and running.in_flight > running.in_flight_batch
        return is_used or slot.arrivals.idle_s(time.monotonic()) < _PEOPLE_STAY_S

    def connections(self, model: str) -> EngineConnections | None:
        """To read the figures of its engine; None if it has none that is ready."""
        slot = self._slots.get(model)
        running = slot.running if slot is not None else None
        is_up = running is not None and running.ready_since is not None
        return running.supervisor.connections if running is not None and is_up else None

    def load(self, model: str) -> None:
        """Load without a request; clears an earlier failure.

        Raises ModelNotFoundError and UnavailableError.
        """
        slot = self._open_slot(model)
        if self._stopping:
            raise UnavailableError("The server is shutting down.", hint="Try again in a minute.")
        self.board.forget_failures(slot)
        slot.is_held = False
        if slot.running is None or slot.running.is_leaving or slot.running.is_asleep:
            slot.wanted_since = time.monotonic()
        self.board.touch(slot)

    def unload(self, model: str, reason: str = "unloaded by its owner") -> None:
        """Give the memory back once its requests are over. Raises ModelNotFoundError."""
        slot = self.board.slot(model)
        slot.wanted_since = None
        slot.is_held = True
        self.board.forget_failures(slot)
        self._desk.fail_all(
            slot, lambda: UnavailableError(f"The model {model!r} was unloaded.", hint="Ask again.")
        )
        if slot.running is not None:
            # Also one that was drained for another model: that wish may go, this one stays.
            slot.running.drained_for = None
            slot.running.must_end = True
            slot.running.drain_reason = reason
            self._actions.let_go(slot.running, reason)
        self.board.touch(slot)

    def sleep(self, model: str, level: SleepLevel | None = None) -> None:
        """Put a ready model to sleep once its requests are over; None: at the best level.

        Raises ModelNotFoundError and ConflictError.
        """
        slot = self._open_slot(model)
        if slot.running is None:
            raise ConflictError(
                f"{model!r} is not loaded.", hint=f"Load it first: appliance load {model}"
            )
        self._tier.check(slot.running, level)
        self._actions.let_go(slot.running, "put to sleep by its owner")
        self.board.touch(slot)

    def wake(self, model: str) -> None:
        """Wake a model that sleeps. Raises ModelNotFoundError and ConflictError."""
        running = self._open_slot(model).running
        if running is None or not running.is_asleep:
            raise ConflictError(
                f"{model!r} does not sleep.", hint=f"`appliance load {model}` loads it."
            )
        self.load(model)

    async def forget(self, model: str) -> None:
        """Unload a model and drop it; returns when its engine is gone."""
        slot = self.board.slot(model)
        slot.is_deleted = True
        self.unload(model, "its model was deleted")
        while slot.running is not None:
            slot.running.supervisor.stop("its model was deleted")
            await asyncio.wait({slot.running.task})
        await self._registry.delete(model)
        self._slots.pop(model, None)
        self.board.keep_ended(slot, last=None, first=None)
        self._publish(ModelRemoved(id=model))

    def unload_idle(self) -> None:
        """Give back the memory of models that nobody has used for their idle timeout."""
        now = time.monotonic()
        for slot in self._slots.values():
            running = slot.running
            if running is None or running.in_flight:
                continue
            if running.is_asleep and slot.oldest_wish() is None:
                limit_s = self._settings.asleep_timeout_s
                if 0 <= limit_s <= now - running.last_used:
                    running.supervisor.stop(f"asleep and idle for {limit_s:.0f} s")
            if not running.takes_requests:
                continue
            timeout_s = self.board.idle_timeout_s(self._registry.get(slot.model))
            if 0 <= timeout_s <= now - running.last_used:
                self._actions.let_go(running, f"idle for {timeout_s:.0f} s")
                self.board.touch(slot)

    async def _run(self) -> None:
        while True:
            self.board.wake.clear()
            pause_s, took_s = _TICK_S, 0.0
            try:
                await self._look_for_files()
                started = time.perf_counter()
                pause_s = min(self._step(), _TICK_S)
                took_s = time.perf_counter() - started
            except Exception:  # a bug with one model must not stop all others
                logger.exception("slots.step_failed")
            # Where hundreds of models wait a decision takes long; requests go on meanwhile.
            await asyncio.sleep(_REST * took_s)
            await _wait_for(self.board.wake, pause_s)

    async def _look_for_files(self) -> None:
        """Models whose files were missing and that are wanted now."""
        now = time.monotonic()
        for slot in list(self._slots.values()):
            is_due = slot.retry_at is None or slot.retry_at <= now
            if slot.oldest_wish() is not None and is_due and not slot.is_deleted:
                await self._registry.read_again(slot.model)

    def _step(self) -> float:
        """Decide and act; seconds after which it may be different, though nothing happened."""
        now = time.monotonic()
        self._want_always_on(now)
        slots = list(self._slots.values())
        wanted = [slot for slot in slots if slot.oldest_wish() is not None]
        self._actions.take_back_drains(slots, {each.model for each in wanted if each.lacks_engine})
        self._actions.end_drains(now)
        if not wanted:
            return _TICK_S
        rooms = self.board.rooms()
        wishes = [wish for slot in wanted if (wish := self._wish(slot, rooms, now)) is not None]
        if not wishes:
            return _TICK_S
        # A sleeper may have been ended for its own wish.
        rooms, residents = self.board.rooms(), self.board.residents(now)
        try:
            decision = decide(wishes, rooms, residents, self._policy, now)
        except Exception:
            logger.exception("slots.decision_failed")
            self._actions.fail_faulty(wishes, rooms, residents, self._policy, now)
            return _LEAST_S
        for action in decision.actions:
            self._actions.carry_out(action)
        return _TICK_S if decision.again_at is None else max(decision.again_at - now, _LEAST_S)

    def _wish(self, slot: Slot, rooms: Sequence[DeviceRoom], now: float) -> Wish | None:
        """What is to be decided about the slot; None if nothing can be now."""
        is_early = slot.retry_at is not None and slot.retry_at > now
        if slot.is_deleted or self._stopping or is_early:
            return None
        running = slot.running
        if running is not None and not running.is_asleep:
            if running.is_leaving:
                slot.waits_for = "waits until its old engine has ended"
            return None
        try:
            if running is not None:
                if not self.board.fits_only_elsewhere(running, rooms, now):
                    return self.board.wish_to_wake(slot, running, rooms, now)
                running.supervisor.stop("its devices are busy, and others have room")
                return None
            known = self._registry.get(slot.model)
            if known.facts is not None:
                return self.board.wish(slot, known, rooms, now)
            problem = known.problem or "Its files are gone."
            hint = f"Put the files back into {known.settings.path}, then load it again."
            self._lives.give_up(slot, FailureCause.MISSING_FILES, problem, hint)
        except Exception as error:
            logger.exception("slots.wish_failed model=%s", slot.model)
            self._actions.fail(slot, error)
        return None

    def _open_slot(self, model: str) -> Slot:
        slot = self.board.slot(model)
        if slot.is_deleted:
            raise ModelNotFoundError(
                f"The model {model!r} is being deleted.", hint="GET /v1/models lists all models."
            )
        return slot

    def _want_always_on(self, now: float) -> None:
        for known in self._registry.models():
            slot = self.board.slot(known.id)
            gave_up = slot.failure is not None and slot.retry_at is None
            if (
                known.settings.always_on
                and slot.running is None
                and slot.wanted_since is None
                and not (slot.is_held or gave_up or self._stopping)
            ):
                slot.wanted_since = now


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
