"""The one task that owns slots: who waits, who is loaded where, who has to go.

All methods run on the event loop and decisions are made in one place (`_step`), so there are no
locks. Everyone else holds leases, reads the board and listens to events.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from appliance.config.settings import EngineSettings, SlotSettings
from appliance.errors import ModelNotFoundError, UnavailableError
from appliance.protocol.engines import EngineState, FailureCause
from appliance.protocol.events import Event, ModelRemoved
from appliance.registry.registry import Registry
from appliance.slots.board import SlotBoard
from appliance.slots.history import LoadHistory
from appliance.slots.launcher import EngineLauncher
from appliance.slots.leases import Lease, LeaseDesk
from appliance.slots.lives import EngineLives
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.planner import Evict, Place, Refuse, Resident, Wait
from appliance.slots.slot import Running, Slot

logger = logging.getLogger(__name__)

_TICK_S = 1.0


class SlotScheduler:
    """Owner of all slots; `board` is what others read."""

    def __init__(
        self,
        *,
        registry: Registry,
        launcher: EngineLauncher,
        monitor: DeviceMonitor,
        history: LoadHistory,
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
            settings=settings,
            slots=slots,
            publish=publish,
        )
        self._desk = LeaseDesk(
            max_queue=settings.max_queue,
            queue_timeout_s=settings.queue_timeout_s,
            changed=self.board.touch,
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
    async def lease(self, model: str) -> AsyncIterator[Lease]:
        """The way to an engine: loads on demand, waits in the queue, counts what is in flight.

        Raises ModelNotFoundError, QueueFullError, LoadFailedError, DoesNotFitError and
        UnavailableError.
        """
        slot = self._open_slot(model)
        self.board.rate.add(time.monotonic())
        lease = await self._desk.acquire(slot)
        try:
            yield lease
        finally:
            self._desk.release(lease, slot)
            self._stop_if_drained(lease.running)

    def load(self, model: str) -> None:
        """Load without a request; clears an earlier failure.

        Raises ModelNotFoundError and UnavailableError.
        """
        slot = self._open_slot(model)
        if self._stopping:
            raise UnavailableError("The server is shutting down.", hint="Try again in a minute.")
        self.board.forget_failures(slot)
        slot.is_held = False
        if slot.running is None or slot.running.is_leaving:
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
            slot.running.drain_reason = reason
            self._let_go(slot.running, reason)
        self.board.touch(slot)

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
            if running is None or not running.takes_requests or running.in_flight:
                continue
            timeout_s = self.board.idle_timeout_s(self._registry.get(slot.model))
            if 0 <= timeout_s <= now - running.last_used:
                self._let_go(running, f"idle for {timeout_s:.0f} s")
                self.board.touch(slot)

    async def _run(self) -> None:
        while True:
            self.board.wake.clear()
            try:
                await self._look_for_files()
                self._step()
            except Exception:  # a bug with one model must not stop all others
                logger.exception("slots.step_failed")
            await _wait_for(self.board.wake, _TICK_S)

    async def _look_for_files(self) -> None:
        """Models whose files were missing and that are wanted now."""
        now = time.monotonic()
        for slot in list(self._slots.values()):
            is_due = slot.retry_at is None or slot.retry_at <= now
            if slot.oldest_wish() is not None and is_due and not slot.is_deleted:
                await self._registry.read_again(slot.model)

    def _step(self) -> None:
        """Serve the wishes in the order of their age; a younger one takes no room from an older."""
        now = time.monotonic()
        self._want_always_on(now)
        wishes = [(since, slot) for slot in self._slots.values() if (since := slot.oldest_wish())]
        wishes.sort(key=lambda wish: wish[0])
        self._take_back_gates({slot.model for _, slot in wishes})
        self._end_drains(now)
        claimed: set[str] = set()
        for since, slot in wishes:
            if slot.is_deleted or self._stopping:
                continue
            if slot.retry_at is not None and slot.retry_at > now:
                continue
            if slot.running is None:
                claimed |= self._serve_or_give_up(slot, now - since, claimed)
            elif slot.running.is_leaving:
                slot.waits_for = "waits until its old engine has ended"

    def _serve_or_give_up(self, slot: Slot, waited_s: float, claimed: set[str]) -> set[str]:
        try:
            return self._serve(slot, waited_s, claimed)
        except Exception as error:
            logger.exception("slots.serve_failed model=%s", slot.model)
            message = f"The server failed to start it: {error}."
            hint = "The server's log says more."
            self._lives.give_up(slot, FailureCause.CRASHED, message, hint)
            return set()

    def _serve(self, slot: Slot, waited_s: float, claimed: set[str]) -> set[str]:
        """Act on one wish; returns the devices that no younger one may take."""
        known = self._registry.get(slot.model)
        if known.facts is None:
            problem = known.problem or "Its files are gone."
            hint = f"Put the files back into {known.settings.path}, then load it again."
            self._lives.give_up(slot, FailureCause.MISSING_FILES, problem, hint)
            return set()
        wanted = self.board.estimate(known)
        rooms = [
            replace(room, is_starting=room.is_starting or room.id in claimed)
            for room in self.board.rooms()
        ]
        decision = self.board.plan(known, wanted, rooms)
        match decision:
            case Place(devices):
                self._lives.launch(slot, known, devices, wanted)
                return set()
            case Refuse(message, hint):
                self._lives.give_up(slot, FailureCause.DOES_NOT_FIT, message, hint)
                return set()
            case Evict(victims, devices):
                if claimed.isdisjoint(room.id for room in devices):
                    self._evict(slot, victims)
                    self._lives.prepare(known)
            case Wait(reason, residents, devices):
                self._say_why(slot, reason)
                if waited_s > self._settings.max_wait_s:
                    self._gate(slot, residents)
                    self._lives.prepare(known)
        return {room.id for room in devices}

    def _evict(self, slot: Slot, victims: tuple[Resident, ...]) -> None:
        if slot.swap_started is None:
            slot.swap_started = time.monotonic()
        for victim in victims:
            running = self._slots[victim.model].running
            if running is None:
                continue
            slot.swap_evicted.append(victim.model)
            logger.info("slots.evicting model=%s for=%s", victim.model, slot.model)
            self._let_go(running, f"evicted for {slot.model}")
            self.board.touch(self._slots[victim.model])
        names = ", ".join(victim.model for victim in victims)
        self._say_why(slot, f"waits until {names} has given its memory back")

    def _gate(self, slot: Slot, residents: tuple[Resident, ...]) -> None:
        """Somebody has waited long enough: busy engines take no further requests."""
        now = time.monotonic()
        for resident in residents:
            running = self._slots[resident.model].running
            if running is None or not running.takes_requests or running.ready_since is None:
                continue
            if now - running.ready_since < self._settings.min_loaded_s:
                continue
            if slot.swap_started is None:
                slot.swap_started = now
            slot.swap_evicted.append(resident.model)
            running.drained_for = slot.model
            self._let_go(running, f"drained for {slot.model}, which has waited")
            self.board.touch(self._slots[resident.model])

    def _take_back_gates(self, wishing: set[str]) -> None:
        """An engine that was drained for nobody any more takes requests again."""
        for slot in self._slots.values():
            running = slot.running
            if running is None or running.drained_for is None or running.supervisor.is_stopping:
                continue
            if running.drained_for not in wishing:
                running.drained_for, running.drain_reason = None, None
                slot.wanted_since = None
                running.drain_since = None
                running.supervisor.undrain("the model it was drained for is no longer wanted")
                self._desk.grant_all(slot, running)

    def _let_go(self, running: Running, reason: str) -> None:
        """No further requests; the engine ends once those in flight are over."""
        if running.drain_reason is None:
            running.drain_reason = reason
        if running.drain_since is None:
            running.drain_since = time.monotonic()
        if running.supervisor.state is EngineState.READY:
            running.supervisor.drain(reason)
        self._stop_if_drained(running)

    def _end_drains(self, now: float) -> None:
        """Engines that are drained go; one whose requests do not end is not waited for for ever."""
        for running in self.board.running():
            self._stop_if_drained(running)
            since, limit_s = running.drain_since, self._settings.drain_limit_s
            if since is not None and now - since > limit_s:
                running.supervisor.stop(f"{running.drain_reason}; not idle after {limit_s:.0f} s")

    def _stop_if_drained(self, running: Running) -> None:
        if running.drain_reason is not None and running.in_flight == 0:
            running.supervisor.stop(running.drain_reason)

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

    def _say_why(self, slot: Slot, reason: str) -> None:
        if slot.waits_for != reason:
            slot.waits_for = reason
            self.board.tell(slot)


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
