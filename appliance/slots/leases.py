"""The queue of a slot and the leases on its engine. Event loop only; the scheduler decides."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from appliance.engine.command import has_priorities
from appliance.engine.connection import EngineConnections
from appliance.errors import (
    ApplianceError,
    DoesNotFitError,
    LoadFailedError,
    QueueFullError,
    UnavailableError,
)
from appliance.protocol.engines import Failure, FailureCause
from appliance.slots.slot import Priority, Running, Slot, Waiter

_USUAL_WAIT_S = 5.0


class Lease:
    """The right to send one request to a ready engine; it holds off eviction until released."""

    def __init__(self, slot: Slot, running: Running, priority: Priority) -> None:
        self._slot = slot
        self.running = running
        self.priority = priority
        self.model = slot.model

    @property
    def engine_id(self) -> str:
        """The engine that the request goes to."""
        return self.running.supervisor.id

    @property
    def connections(self) -> EngineConnections:
        """The way to the engine."""
        return self.running.supervisor.connections

    @property
    def has_priorities(self) -> bool:
        """Whether a request may say that others go first."""
        supervisor = self.running.supervisor
        return has_priorities(supervisor.spec.settings, supervisor.environment)

    @property
    def failure(self) -> Failure | None:
        """Why the engine died, once that is known."""
        return self.running.supervisor.failure

    def first_byte_after(self, seconds: float) -> None:
        """Note how long the client of a stream waited for the first byte of the answer."""
        self._slot.first_token_s.append(seconds)


class LeaseDesk:
    """Grants, queues, releases."""

    def __init__(
        self,
        *,
        max_queue: int,
        queue_timeout_s: float,
        changed: Callable[[Slot], None],
        used: Callable[[Slot], None],
        expected_wait: Callable[[Slot], float | None],
    ) -> None:
        self._max_queue = max_queue
        self._queue_timeout_s = queue_timeout_s
        self._changed = changed
        self._used = used
        self._expected_wait = expected_wait
        self._closed = False

    async def acquire(
        self, slot: Slot, priority: Priority, keep_alive_s: float | None = None
    ) -> Lease:
        """A lease, after a wait in the queue if need be.

        Raises QueueFullError, LoadFailedError, DoesNotFitError and UnavailableError.
        """
        if self._closed:
            raise _shutting_down()
        slot.requests_total += 1
        running = slot.running
        if running is not None and running.takes_requests:
            return self._grant(slot, running, priority, keep_alive_s)
        self._refuse_if_hopeless(slot, priority)
        granted: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        waiter = Waiter(
            granted, since=time.monotonic(), priority=priority, keep_alive_s=keep_alive_s
        )
        slot.waiters.append(waiter)
        self._changed(slot)
        try:
            # A batch has time, and who asks anew begins to wait anew: it would never be due.
            is_batch = priority is Priority.BATCH
            async with asyncio.timeout(None if is_batch else self._queue_timeout_s):
                running = await waiter.granted
        except TimeoutError:
            self._give_back_grant(slot, waiter)
            raise UnavailableError(
                f"The request waited {self._queue_timeout_s:.0f} s for {slot.model!r}"
                f" ({slot.waits_for or 'it is still loading'}).",
                hint="Try again later, or ask the owner of this server to free memory.",
                retry_after_s=60.0,
            ) from None
        except asyncio.CancelledError:
            self._give_back_grant(slot, waiter)
            raise
        finally:
            if waiter in slot.waiters:
                slot.waiters.remove(waiter)
                self._changed(slot)
        return Lease(slot, running, priority)

    def release(self, lease: Lease, slot: Slot) -> None:
        """The request is over."""
        self._release(slot, lease.running, lease.priority)

    def grant_all(self, slot: Slot, running: Running) -> None:
        """Hand the engine to all who wait for it."""
        while slot.waiters:
            waiter = slot.waiters.popleft()
            if not waiter.granted.done():
                self._grant(slot, running, waiter.priority, waiter.keep_alive_s)
                waiter.granted.set_result(running)

    def fail_all(self, slot: Slot, make_error: Callable[[], ApplianceError]) -> None:
        """Tell all who wait that it will not be."""
        while slot.waiters:
            waiter = slot.waiters.popleft()
            if not waiter.granted.done():
                waiter.granted.set_exception(make_error())
                # A waiter whose client has just left does not read it.
                waiter.granted.exception()

    def close(self) -> None:
        """Grant nothing any more."""
        self._closed = True

    def _grant(
        self, slot: Slot, running: Running, priority: Priority, keep_alive_s: float | None
    ) -> Lease:
        running.in_flight += 1
        running.in_flight_batch += priority is Priority.BATCH
        if keep_alive_s is not None:
            running.keep_alive_s = keep_alive_s
        running.last_used = time.monotonic()
        slot.last_used_at = datetime.now(UTC)
        self._used(slot)
        return Lease(slot, running, priority)

    def _release(self, slot: Slot, running: Running, priority: Priority) -> None:
        running.in_flight -= 1
        running.in_flight_batch -= priority is Priority.BATCH
        running.last_used = time.monotonic()
        slot.last_used_at = datetime.now(UTC)
        # Only an engine without work, or without that of people, may go for others.
        has_people = running.in_flight > running.in_flight_batch
        (self._used if has_people else self._changed)(slot)

    def _give_back_grant(self, slot: Slot, waiter: Waiter) -> None:
        """The client left in the moment in which the lease was granted."""
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._release(slot, granted.result(), waiter.priority)

    def _refuse_if_hopeless(self, slot: Slot, priority: Priority) -> None:
        failure = slot.failure
        now = time.monotonic()
        if failure is not None and (slot.retry_at is None or slot.retry_at > now):
            raise load_failed(
                slot.model, failure, None if slot.retry_at is None else slot.retry_at - now
            )
        if len(slot.waiting(priority)) >= self._max_queue:
            wait = self._expected_wait(slot) or _USUAL_WAIT_S
            raise QueueFullError(
                f"{len(slot.waiters)} requests wait for {slot.model!r} already.",
                hint=f"Try again in {wait:.0f} s.",
                retry_after_s=wait,
            )


def load_failed(model: str, failure: Failure, retry_in_s: float | None) -> UnavailableError:
    """The error for a client whose model could not be loaded."""
    if failure.cause is FailureCause.DOES_NOT_FIT:
        return DoesNotFitError(failure.message, hint=failure.hint)
    hint = failure.hint
    if retry_in_s is None:
        hint += f" It is not tried again by itself: `appliance load {model}` does that."
    return LoadFailedError(
        f"The model {model!r} could not be loaded ({failure.cause.value}): {failure.message}",
        hint=hint,
        retry_after_s=60.0 if retry_in_s is None else max(retry_in_s, 1.0),
    )


def _shutting_down() -> UnavailableError:
    return UnavailableError("The server is shutting down.", hint="Try again in a minute.")
