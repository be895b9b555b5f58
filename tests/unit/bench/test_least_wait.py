"""The lower bound on waits against all schedules that load on demand, on small instances."""

import math
from functools import partial
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.slots.least_wait import fewest_late, least_p95_s, most_held
from tests.bench.slots.parts import ModelSpec, Request, Trace, devices
from tests.bench.slots.product import Appliance
from tests.bench.slots.traces import bursty, rotation, zipf
from tests.bench.slots.world import State, World

BIG = 20 * 1024**3
STEP_S = 4.0
STEPS = 8
LOAD_S = 3.0
RELEASE_S = 1.0


class OnDemand(Appliance):
    """Loads what it was told for each step, if somebody waits for it."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        super().__init__()
        self._wanted = wanted
        self._next: str | None = None

    def act(self, world: World) -> bool:
        return False

    def follow(self, world: World) -> None:
        wanted = self._wanted[min(int(world.now / STEP_S), len(self._wanted) - 1)]
        there = list(world.engines.values())
        if self._next is None and world.queues.get(wanted) and wanted not in world.engines:
            ready = [each for each in there if each.state is State.READY]
            if ready or not there:
                self._next = wanted
            for engine in ready:
                world.drain(engine.spec.name, wanted)
        if self._next is not None and not world.engines:
            world.start(self._next, ["gpu-0"])
            self._next = None


class Ahead(Appliance):
    """Knows the rotation: loads the next model where the last but two was, once that is idle."""

    def act(self, world: World) -> bool:
        return False

    def turn(self, world: World, number: int, model: str) -> None:
        device = f"gpu-{number % 3}"
        for engine in list(world.engines.values()):
            if engine.devices == (device,):
                world.stop(engine.spec.name)
        world.at(world.now + world.trace.release_s, lambda: world.start(model, [device]))


def small(requests: list[tuple[float, str]]) -> Trace:
    return Trace(
        name="drawn",
        about="",
        devices=devices(24),
        models=tuple(
            ModelSpec(name=name, need_bytes=BIG, load_s=LOAD_S, slowdown=0.0) for name in "ab"
        ),
        requests=tuple(Request(model=name, at=at, service_s=0.5) for at, name in requests),
        horizon_s=STEPS * STEP_S,
        release_s=RELEASE_S,
    )


def late_at_best(trace: Trace, wait_s: float) -> int:
    """The fewest that wait so long, over all choices of a model for each step."""
    fewest = len(trace.requests)
    for wanted in product("ab", repeat=STEPS):
        script = OnDemand(wanted)
        world = World(trace, script)
        for half in range(int(trace.horizon_s * 2)):
            world.at(half / 2, partial(script.follow, world))
        waits = [wait for wait, _ in world.run(patience_s=100).waits]
        fewest = min(fewest, sum(wait >= wait_s for wait in waits))
    return fewest


arrivals = st.tuples(
    st.integers(0, int(STEPS * STEP_S) - 1).map(lambda at: at + 0.25), st.sampled_from("ab")
)


@settings(max_examples=12, deadline=None)
@given(st.lists(arrivals, min_size=1, max_size=12))
def test_no_schedule_that_loads_on_demand_makes_fewer_wait(
    requests: list[tuple[float, str]],
) -> None:
    trace = small(requests)
    wait_s = LOAD_S + RELEASE_S
    assert late_at_best(trace, wait_s) >= fewest_late(trace, wait_s)


def test_bound_says_something_where_two_models_are_asked_for_in_turn() -> None:
    trace = small([(2.0 * turn + 0.25, "ab"[turn % 2]) for turn in range(16)])
    bound = fewest_late(trace, LOAD_S + RELEASE_S)
    assert 0 < bound <= late_at_best(trace, LOAD_S + RELEASE_S)
    assert least_p95_s(trace) == LOAD_S + RELEASE_S


def test_who_loads_ahead_is_not_bounded() -> None:
    trace = rotation()
    policy = Ahead()
    world = World(trace, policy)
    for number, request in enumerate(trace.requests):
        # The first three are loaded when they are asked for, and answered by then.
        begin = 0.0 if number < 3 else max(request.at - 18.0, 18.0)
        world.at(begin, partial(policy.turn, world, number, request.model))
    waits = [wait for wait, _ in world.run().waits if wait > 0]
    assert len(waits) <= 4


def p95_s(trace: Trace) -> float:
    waits = sorted(wait for wait, _ in World(trace, Appliance()).run().waits)
    return waits[math.ceil(len(waits) * 0.95) - 1]


def test_nobody_who_loads_on_demand_waits_less_than_the_product_on_the_rotation() -> None:
    assert least_p95_s(rotation()) == pytest.approx(p95_s(rotation()))


def test_on_the_quiet_zipf_trace_a_schedule_waits_less_than_the_product() -> None:
    """The slowest models stay: what is measured there is no floor."""
    trace = zipf(0.8, 0.05)
    slowest = max(model.load_s for model in trace.models)
    kept = frozenset(model.name for model in trace.models if model.load_s == slowest)
    less_s = p95_s(Trace(**{**vars(trace), "pinned": kept}))
    bound_s = least_p95_s(trace)
    assert bound_s is not None
    assert bound_s <= less_s < p95_s(trace)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), max_size=7),
    st.integers(0, 3),
)
def test_no_set_of_gaps_that_fits_is_larger(drawn: list[list[int]], places: int) -> None:
    gaps = [(float(start), float(end)) for start, end in drawn]

    def fits(chosen: tuple[tuple[float, float], ...]) -> bool:
        return all(
            sum(start <= time < end for start, end in chosen) <= places for time in range(10)
        )

    largest = max(
        count
        for count in range(len(gaps) + 1)
        if any(fits(chosen) for chosen in combinations(gaps, count))
    )
    assert most_held(gaps, places) == largest


def test_release_counts_only_where_each_load_takes_the_place_of_another() -> None:
    trace = rotation()
    timed = Trace(**{**vars(trace), "idle_timeout_s": 900.0})
    assert (least_p95_s(trace), least_p95_s(timed)) == (13.0, 12.0)


def test_clients_who_wait_for_answers_are_not_bounded() -> None:
    assert least_p95_s(bursty()) is None
