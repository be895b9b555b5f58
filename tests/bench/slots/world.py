"""A machine with a virtual clock: engines start, serve, drain and go; a policy decides.

Engines go through starting -> ready -> draining -> freeing -> gone. A request is granted at once
if its model's engine is ready and takes requests; otherwise it waits in the queue of its model.
What a policy must never do (over-commit a device, stop a busy engine, start two at a time on a
device) is checked at each action.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol, TypeGuard

from tests.bench.slots.parts import ModelSpec, Request, Trace

TICK_S = 1.0
LATEST_S = 4 * 3600.0
"""So long after the horizon whoever waits is still served."""
_ROUNDS = 50


class State(Enum):
    """Of an engine."""

    STARTING = auto()
    READY = auto()
    FREEING = auto()


@dataclass(eq=False)
class Engine:
    """An engine that holds memory."""

    id: str
    spec: ModelSpec
    devices: tuple[str, ...]
    turn_s: float
    """So long after it is ready nobody takes its place, if it has work."""
    state: State = State.STARTING
    ready_at: float | None = None
    last_used: float = 0.0
    in_flight: int = 0
    batch_in_flight: int = 0
    active: int = 0
    inner: deque[Request] = field(default_factory=deque)
    """Granted, and waiting for a place inside the engine."""
    joined: deque[Request] = field(default_factory=deque)
    """Dispatched to it while it starts."""
    is_draining: bool = False
    drained_for: str | None = None

    @property
    def takes_requests(self) -> bool:
        """Whether a request may be granted on it."""
        return self.state is State.READY and not self.is_draining

    @property
    def is_leaving(self) -> bool:
        """Whether it is on its way out."""
        return self.is_draining or self.state is State.FREEING

    @property
    def is_busy(self) -> bool:
        """Whether it has requests, or starts."""
        return self.in_flight > 0 or self.state is State.STARTING


class Order(Enum):
    """Who may be granted an engine before those who came earlier."""

    BY_MODEL = auto()
    """Who wants another model."""
    DISPATCHED = auto()
    """Nobody, but a request whose model is being loaded does not hold up those behind it."""
    STRICT = auto()
    """Nobody."""


class Policy(Protocol):
    """Decides who is loaded where."""

    name: str
    order: "Order"

    def act(self, world: "World") -> bool:
        """Act on the world as it is now; whether something was done."""

    def again_at(self) -> float | None:
        """When to look again although nothing has happened."""

    def watch(self, request: Request) -> None:
        """A request came."""

    def serves(self, world: "World", model: str) -> None:
        """All who wait for the model are about to be granted its engine."""


@dataclass
class Account:
    """What happened."""

    waits: list[tuple[float, Request]] = field(default_factory=list)
    """Seconds until the lease, and the request."""
    loads: int = 0
    refused: int = 0
    never_served: int = 0
    served_s: float = 0.0
    """Seconds of work that requests got until the horizon, as if each was alone."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """By device: how long an engine with requests was on it, until the horizon."""
    decisions: int = 0


class World:
    """The machine. Raises AssertionError if the policy does what must not be done."""

    def __init__(self, trace: Trace, policy: Policy) -> None:
        self.trace = trace
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.queues: dict[str, deque[Request]] = {}
        self.specs = {model.name: model for model in trace.models}
        self.account = Account(busy_s={device.id: 0.0 for device in trace.devices})
        self._policy = policy
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._engines_made = 0
        self._changed = False
        self._look_at = math.inf
        self._busy_engines = {device.id: 0 for device in trace.devices}
        self._busy_since = dict.fromkeys(self._busy_engines, 0.0)

    # What policies see

    def wished(self) -> list[str]:
        """Models that somebody waits for and that have no engine, oldest first."""
        names = [name for name, queue in self.queues.items() if queue and name not in self.engines]
        return sorted(names, key=lambda name: (self.queues[name][0].at, name))

    def head(self) -> str | None:
        """The model of the request that has waited longest."""
        waiting = [(queue[0].at, name) for name, queue in self.queues.items() if queue]
        return min(waiting)[1] if waiting else None

    def free_bytes(self, device: str) -> int:
        """Not promised to any engine."""
        total = next(each.total_bytes for each in self.trace.devices if each.id == device)
        return total - sum(
            engine.spec.need_bytes for engine in self.engines.values() if device in engine.devices
        )

    def is_starting_on(self, device: str) -> bool:
        """Whether an engine starts there."""
        return any(
            device in engine.devices and engine.state is State.STARTING
            for engine in self.engines.values()
        )

    # What policies do

    def start(self, model: str, on: Iterable[str], turn_s: float = 0.0) -> None:
        """Load a model."""
        spec, chosen = self.specs[model], tuple(on)
        assert model not in self.engines, f"{model} has an engine"
        assert len(set(chosen)) == spec.tp_size
        for device in chosen:
            assert not self.is_starting_on(device), f"two starts on {device}"
            assert self.free_bytes(device) >= spec.need_bytes, f"over-commit of {device}"
        self._engines_made += 1
        engine = Engine(f"eng_{self._engines_made}", spec, chosen, turn_s, last_used=self.now)
        self.engines[model] = engine
        self.account.loads += 1
        self.at(self.now + spec.load_s, lambda: self._became_ready(engine))
        self._changed = True

    def stop(self, model: str) -> None:
        """End an idle engine."""
        engine = self.engines[model]
        assert not engine.is_busy, f"{model} is busy"
        assert model not in self.trace.pinned, f"{model} is pinned"
        self._free(engine)

    def drain(self, model: str, wanted_by: str) -> None:
        """It takes no further requests and goes when those in flight are over."""
        engine = self.engines[model]
        assert model not in self.trace.pinned, f"{model} is pinned"
        assert engine.state is State.READY, f"{model} is {engine.state}"
        engine.is_draining, engine.drained_for = True, wanted_by
        self._changed = True
        if engine.in_flight == 0:
            self._free(engine)

    def undrain(self, model: str) -> None:
        """Nobody needs its memory any more."""
        engine = self.engines[model]
        engine.is_draining, engine.drained_for = False, None
        self._grant_all(engine)
        self._changed = True

    def give_up(self, model: str) -> None:
        """All who wait for it are refused."""
        queue = self.queues[model]
        self.account.refused += len(queue)
        queue.clear()
        self._changed = True

    # The clock

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do that then."""
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, do))

    def run(self, patience_s: float = LATEST_S) -> Account:
        """Until everybody is served, but no longer than `patience_s` after the horizon."""
        for request in self.trace.requests:
            self.at(request.at, lambda request=request: self._arrive(request))  # type: ignore[misc]
        for number in range(len(self.trace.sessions)):
            self._ask(number, self.trace.sessions[number].start)
        end = self.trace.horizon_s + patience_s
        while self._events and self._events[0][0] <= end:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self._decide()
        for queue in self.queues.values():
            self.account.never_served += len(queue)
            self.account.waits += [(end - request.at, request) for request in queue]
        for device, busy in self._busy_engines.items():
            if busy:
                self._count_busy(device)
        return self.account

    def _decide(self) -> None:
        is_time = self._look_at <= self.now
        if is_time:
            self._look_at = math.inf
        if not (self._changed or is_time):
            return
        waits = self.head() is not None
        drains = any(engine.is_draining for engine in self.engines.values())
        self._changed = False
        if not (waits or drains):
            return
        for _ in range(_ROUNDS):
            self.account.decisions += 1
            if not self._policy.act(self):
                break
        else:
            raise AssertionError(f"{self._policy.name} does not come to rest at {self.now}")
        self._changed = False
        again_at = self._policy.again_at()
        look_at = self.now + TICK_S
        if again_at is not None and again_at > self.now:
            look_at = min(look_at, again_at)
        if look_at < self._look_at:
            self._look_at = look_at
            self.at(look_at, lambda: None)

    # Requests

    def _ask(self, number: int, when: float) -> None:
        session = self.trace.sessions[number]
        if when < session.end:
            request = Request(
                model=session.model,
                at=when,
                service_s=session.service_s,
                is_batch=session.is_batch,
                session=number,
            )
            self.at(when, lambda: self._arrive(request))

    def _arrive(self, request: Request) -> None:
        self._policy.watch(request)
        engine = self.engines.get(request.model)
        if engine is not None and engine.takes_requests and self._policy.order is Order.BY_MODEL:
            self._grant(engine, request)
            return
        self.queues.setdefault(request.model, deque()).append(request)
        self._changed = True
        if self._policy.order is not Order.BY_MODEL:
            self._grant_in_order()

    def _grant(self, engine: Engine, request: Request) -> None:
        self.account.waits.append((self.now - request.at, request))
        engine.last_used = self.now
        engine.in_flight += 1
        engine.batch_in_flight += request.is_batch
        if engine.in_flight == 1:
            self._changed = True
            for device in engine.devices:
                self._work_begins(device)
        if engine.active < engine.spec.concurrency:
            self._serve(engine, request)
        else:
            engine.inner.append(request)

    def _serve(self, engine: Engine, request: Request) -> None:
        spec = engine.spec
        takes_s = request.service_s * (1 + spec.slowdown * engine.active / spec.concurrency)
        engine.active += 1
        counted_s = min(max(self.trace.horizon_s - self.now, 0.0), takes_s)
        self.account.served_s += request.service_s * counted_s / takes_s
        self.at(self.now + takes_s, lambda: self._answered(engine, request))

    def _answered(self, engine: Engine, request: Request) -> None:
        engine.active -= 1
        engine.in_flight -= 1
        engine.batch_in_flight -= request.is_batch
        engine.last_used = self.now
        if engine.inner:
            self._serve(engine, engine.inner.popleft())
        if request.session is not None:
            self._ask(request.session, self.now + self.trace.sessions[request.session].think_s)
        if engine.in_flight == 0:
            self._changed = True
            for device in engine.devices:
                self._work_ends(device)
            if engine.is_draining:
                self._free(engine)
            elif self.trace.idle_timeout_s is not None:
                self.at(self.now + self.trace.idle_timeout_s, lambda: self._unload_if_idle(engine))

    # Engines

    def _became_ready(self, engine: Engine) -> None:
        engine.state = State.READY
        engine.ready_at = engine.last_used = self.now
        self._grant_all(engine)
        self._changed = True

    def _grant_all(self, engine: Engine) -> None:
        if self._policy.order is not Order.BY_MODEL:
            while engine.joined:
                self._grant(engine, engine.joined.popleft())
            self._grant_in_order()
            return
        self._policy.serves(self, engine.spec.name)
        queue = self.queues.get(engine.spec.name, deque())
        while queue:
            self._grant(engine, queue.popleft())

    def _grant_in_order(self) -> None:
        while (head := self.head()) is not None:
            engine = self.engines.get(head)
            if engine is not None and engine.takes_requests:
                self._grant(engine, self.queues[head].popleft())
            elif self._joins(engine):
                engine.joined.append(self.queues[head].popleft())
            else:
                return

    def _joins(self, engine: Engine | None) -> TypeGuard[Engine]:
        return (
            self._policy.order is Order.DISPATCHED
            and engine is not None
            and engine.state is State.STARTING
        )

    def _free(self, engine: Engine) -> None:
        engine.state = State.FREEING
        self._changed = True
        self.at(self.now + self.trace.release_s, lambda: self._gone(engine))

    def _gone(self, engine: Engine) -> None:
        del self.engines[engine.spec.name]
        self._changed = True

    def _unload_if_idle(self, engine: Engine) -> None:
        timeout_s = self.trace.idle_timeout_s
        if (
            timeout_s is not None
            and engine.takes_requests
            and engine.in_flight == 0
            and self.now - engine.last_used >= timeout_s - 1e-6
            and engine.spec.name not in self.trace.pinned
        ):
            self._free(engine)

    # Accounts

    def _work_begins(self, device: str) -> None:
        if self._busy_engines[device] == 0:
            self._busy_since[device] = self.now
        self._busy_engines[device] += 1

    def _work_ends(self, device: str) -> None:
        self._busy_engines[device] -= 1
        if self._busy_engines[device] == 0:
            self._count_busy(device)

    def _count_busy(self, device: str) -> None:
        until = min(self.now, self.trace.horizon_s)
        self.account.busy_s[device] += max(until - self._busy_since[device], 0.0)
