"""Event bus: numbers events, keeps the newest, hands them to subscribers with bounded queues.

A slow subscriber never slows the publisher: gauges of the same thing replace each other in its
queue, and a queue that stays full closes the subscription. The client then comes back for a fresh
snapshot.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from appliance.protocol.events import (
    BatchChanged,
    DevicesSampled,
    EngineChanged,
    Event,
    ModelChanged,
    PullChanged,
    ServerChanged,
)

_HISTORY = 1000
_QUEUE = 256


class Subscription:
    """One reader's queue. Iterate for `(seq, event)`; ends when the bus closes or it lags."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[tuple[int, Event]] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be added any more."""
        return self._closed

    def put(self, seq: int, event: Event) -> None:
        """Add an event, replacing a queued one about the same thing."""
        if self._closed:
            return
        key = _coalescing_key(event)
        if key is not None:
            for index, (_, queued) in enumerate(self._queue):
                if _coalescing_key(queued) == key:
                    del self._queue[index]
                    break
        if len(self._queue) >= self._limit:
            self.close()
            return
        self._queue.append((seq, event))
        self._ready.set()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._ready.set()

    async def next(self, timeout_s: float) -> tuple[int, Event] | None:
        """The next event, or None after `timeout_s`; raises StopAsyncIteration at the end."""
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ready.wait()
            except TimeoutError:
                return None
        return self._queue.popleft()


class EventBus:
    """Publish from the event loop only."""

    def __init__(self) -> None:
        # Numbers of a later server are larger, so a client that resumes across a restart is
        # given a snapshot and not the wrong events.
        self.seq = time.time_ns() // 1_000_000
        self._history: deque[tuple[int, Event]] = deque(maxlen=_HISTORY)
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Event], None]] = []
        self._closed = False

    def publish(self, event: Event) -> None:
        """Number the event and hand it to all."""
        self.seq += 1
        self._history.append((self.seq, event))
        for listener in self._listeners:
            listener(event)
        for subscription in tuple(self._subscriptions):
            subscription.put(self.seq, event)
            if subscription.is_closed:
                self._subscriptions.discard(subscription)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with each event as it is published; it must not block or raise."""
        self._listeners.append(listener)

    def subscribe(self, *, limit: int = _QUEUE) -> Subscription:
        """A queue of all that comes from now on; hand it back with `unsubscribe`."""
        subscription = Subscription(limit)
        if self._closed:
            subscription.close()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop feeding it."""
        self._subscriptions.discard(subscription)

    def since(self, seq: int) -> list[tuple[int, Event]] | None:
        """All events after number `seq`, or None if some of them are gone."""
        if seq == self.seq:
            return []
        if not self._history or not self._history[0][0] - 1 <= seq < self.seq:
            return None
        return [(number, event) for number, event in self._history if number > seq]

    def close(self) -> None:
        """End all subscriptions, now and later ones."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()


async def iterate(
    subscription: Subscription, heartbeat_s: float
) -> AsyncIterator[tuple[int, Event] | None]:
    """Events of a subscription, and None whenever nothing came for `heartbeat_s`."""
    while True:
        try:
            item = await subscription.next(heartbeat_s)
        except StopAsyncIteration:
            return
        yield item


def _coalescing_key(event: Event) -> tuple[str, str] | None:
    match event:
        case DevicesSampled():
            return ("devices", "")
        case ServerChanged():
            return ("server", "")
        case ModelChanged(model=model):
            return ("model", model.id)
        case EngineChanged(engine=engine):
            return ("engine", engine.id)
        case BatchChanged(batch=progress):
            return ("batch", progress.batch.id)
        case PullChanged(pull=pull):
            return ("pull", pull.id)
        case _:
            return None
