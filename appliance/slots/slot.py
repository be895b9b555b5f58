"""State of a model's slot, of the engine in it, and of those who wait. Owner: the scheduler."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from appliance.engine.supervisor import EngineSupervisor
from appliance.estimate.estimator import Estimate
from appliance.protocol.engines import EngineState, Failure


@dataclass(eq=False)
class Running:
    """An engine with its accounts. Times are of the monotonic clock, in seconds."""

    supervisor: EngineSupervisor
    estimate: Estimate
    task: asyncio.Task[None]
    last_used: float
    in_flight: int = 0
    ready_since: float | None = None
    drain_reason: str | None = None
    drain_since: float | None = None
    drained_for: str | None = None
    """The model that waits for its memory, if it was busy when it was chosen."""
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
    attempts: int = 0
    retry_at: float | None = None
    waits_for: str | None = None
    swap_started: float | None = None
    swap_evicted: list[str] = field(default_factory=list)
    last_used_at: datetime | None = None
    requests_total: int = 0
    first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=200))

    def oldest_wish(self) -> float | None:
        """Since when somebody wants the model and has no engine for it."""
        wishes = [waiter.since for waiter in self.waiters if not waiter.granted.done()]
        if self.wanted_since is not None:
            wishes.append(self.wanted_since)
        return min(wishes, default=None)
