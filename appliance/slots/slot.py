"""State of a model's slot, of the engine in it, and of those who wait. Owner: the scheduler."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from appliance.engine.supervisor import EngineSupervisor
from appliance.estimate.estimator import Estimate
from appliance.protocol.engines import EngineState, Failure
from appliance.slots.arrivals import ArrivalRate
from appliance.slots.backoff import SOUND_AFTER_S, FailureSeries


class Priority(StrEnum):
    """Whose work a request is."""

    PEOPLE = "people"
    BATCH = "batch"


@dataclass(eq=False)
class Running:
    """An engine with its accounts. Times are of the monotonic clock, in seconds."""

    supervisor: EngineSupervisor
    estimate: Estimate
    task: asyncio.Task[None]
    last_used: float
    in_flight: int = 0
    in_flight_batch: int = 0
    """Those of them that are work of batches."""
    turn_s: float = 0.0
    """Once ready, nobody takes its place for so long while it has work."""
    keep_alive_s: float | None = None
    """The idle timeout that a request asked for last; negative: it stays."""
    ready_since: float | None = None
    drain_reason: str | None = None
    drain_since: float | None = None
    drained_for: str | None = None
    """The model that waits for its memory, if it was busy when it was chosen."""
    is_evicted: bool = False
    """Idle, and chosen to make room for another model."""
    must_end: bool = False
    """It is to end, and not to sleep."""
    is_falling_asleep: bool = False
    is_waking: bool = False
    """It is about to be woken, or is being woken."""
    sleep_level: Literal[0, 1, 2] | None = None
    """A person wants it to sleep, at this level; 0: at any that the settings allow."""
    pids: frozenset[int] = frozenset()
    measured_at: float = 0.0
    tokens_total: float | None = None
    tokens_at: float = 0.0
    tokens_per_s: float | None = None

    @property
    def takes_requests(self) -> bool:
        """Whether a lease may be granted on it."""
        return self.supervisor.state is EngineState.READY and self.drain_reason is None

    @property
    def is_asleep(self) -> bool:
        """Whether it has to be woken before it takes requests."""
        is_asleep = self.supervisor.state is EngineState.ASLEEP
        return is_asleep and not (self.is_leaving or self.is_waking)

    @property
    def is_starting(self) -> bool:
        """Whether it loads or wakes."""
        return self.ready_since is None or self.is_waking

    @property
    def is_at_work(self) -> bool:
        """Whether its memory is likely to change: it loads, or has requests."""
        return self.ready_since is None or self.in_flight > 0

    @property
    def is_leaving(self) -> bool:
        """Whether it is on its way out."""
        return self.drain_reason is not None or self.supervisor.is_stopping


@dataclass(eq=False)
class Waiter:
    """A request that waits for an engine."""

    granted: asyncio.Future[Running]
    since: float
    priority: Priority = Priority.PEOPLE
    keep_alive_s: float | None = None


@dataclass(eq=False)
class Slot:
    """All that the scheduler knows about one model beyond its settings."""

    model: str
    running: Running | None = None
    last: EngineSupervisor | None = None
    """The engine that ended last; its log and failure stay readable."""
    waiters: deque[Waiter] = field(default_factory=deque)
    wanted_since: float | None = None
    """Somebody asked to load it, or it is always on."""
    is_held: bool = False
    """Its owner unloaded it: an always-on model stays away until it is loaded again."""
    is_deleted: bool = False
    """Its model is about to be forgotten: nothing starts in it any more."""
    failure: Failure | None = None
    """The newest one; None once an engine is ready."""
    series: FailureSeries = field(default_factory=FailureSeries)
    first_failure: Failure | None = None
    """That of the series' beginning: later ones may only follow from it."""
    first: EngineSupervisor | None = None
    """Its engine, whose log stays readable; None if none was started."""
    retry_at: float | None = None
    waits_for: str | None = None
    swap_started: float | None = None
    swap_evicted: list[str] = field(default_factory=list)
    last_used_at: datetime | None = None
    requests_total: int = 0
    arrivals: ArrivalRate = field(default_factory=ArrivalRate)
    """Requests of people."""
    first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=200))

    def ended(self) -> list[EngineSupervisor]:
        """Engines that are over and whose logs and failures stay readable."""
        kept = [each for each in (self.last, self.first) if each is not None]
        return kept if self.last is not self.first else kept[:1]

    @property
    def lacks_engine(self) -> bool:
        """Whether none is up or on its way up."""
        running = self.running
        return running is None or running.is_asleep or running.is_leaving

    def is_series_over(self, now: float) -> bool:
        """Whether its engine has been ready for so long that earlier failures are history."""
        since = self.running.ready_since if self.running is not None else None
        return since is not None and now - since >= SOUND_AFTER_S

    def waiting(self, priority: Priority | None = None) -> list[Waiter]:
        """Who waits for an engine, of one priority or of any."""
        if not self.waiters:
            return []
        return [
            waiter
            for waiter in self.waiters
            if not waiter.granted.done() and priority in {None, waiter.priority}
        ]

    def oldest_wish(self) -> float | None:
        """Since when somebody wants the model and has no engine for it."""
        wishes = [waiter.since for waiter in self.waiting()]
        if self.wanted_since is not None:
            wishes.append(self.wanted_since)
        return min(wishes, default=None)
