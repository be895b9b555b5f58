"""The bounds against a search through everything that could be done, on small instances."""

from functools import cache, partial
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.slots.optimum import STEP_S, fewest_loads, most_served_s
from tests.bench.slots.parts import ModelSpec, Session, Trace, devices
from tests.bench.slots.product import Appliance
from tests.bench.slots.world import State, World

BIG = 20 * 1024**3
STEPS = 7


class Script(Appliance):
    """Loads what it was told for each step, whoever waits."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        super().__init__()
        self._wanted = wanted

    def act(self, world: World) -> bool:
        return False

    def follow(self, world: World) -> None:
        wanted = self._wanted[min(int(world.now / STEP_S), len(self._wanted) - 1)]
        for model, engine in list(world.engines.items()):
            if model != wanted and engine.state is State.READY and not engine.is_draining:
                world.drain(model, wanted)
        if not world.engines:
            world.start(wanted, ["gpu-0"])


def best_of_all(trace: Trace) -> float:
    """The most work that any plan serves which chooses a model for each step."""
    best = 0.0
    for wanted in product([model.name for model in trace.models], repeat=STEPS):
        script = Script(wanted)
        world = World(trace, script)
        for second in range(int(trace.horizon_s)):
            world.at(float(second), partial(script.follow, world))
        best = max(best, world.run(patience_s=0).served_s)
    return best


@st.composite
def small_traces(draw: st.DrawFn) -> Trace:
    sessions = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, STEPS - 2))
        sessions.append(
            Session(
                model=draw(st.sampled_from("ab")),
                start=start * STEP_S,
                end=draw(st.integers(start + 1, STEPS)) * STEP_S,
                service_s=draw(st.sampled_from([2.0, 5.0, 8.0])),
                think_s=draw(st.sampled_from([1.0, 4.0, 10.0])),
            )
        )
    return Trace(
        name="drawn",
        about="",
        devices=devices(24),
        models=tuple(
            ModelSpec(name=name, need_bytes=BIG, load_s=STEP_S, slowdown=0.0) for name in "ab"
        ),
        sessions=tuple(sessions),
        horizon_s=STEPS * STEP_S,
        release_s=0.0,
    )


@settings(max_examples=15, deadline=None)
@given(small_traces())
def test_no_plan_serves_more_than_the_bound(trace: Trace) -> None:
    assert best_of_all(trace) <= most_served_s(trace, steps=30) + 1e-6


def test_bound_is_near_what_the_best_plan_serves() -> None:
    trace = Trace(
        name="two",
        about="",
        devices=devices(24),
        models=tuple(
            ModelSpec(name=name, need_bytes=BIG, load_s=STEP_S, slowdown=0.0) for name in "ab"
        ),
        sessions=(
            Session(model="a", start=0, end=35, service_s=4, think_s=0.5),
            Session(model="b", start=0, end=35, service_s=4, think_s=0.5),
        ),
        horizon_s=35,
        release_s=0.0,
    )
    best, bound = best_of_all(trace), most_served_s(trace)
    # Each client's last request may count whole in the bound: 4 s each.
    assert best <= bound <= best + 10


def test_places_limit_the_bound() -> None:
    sessions = tuple(
        Session(model=name, start=0, end=600, service_s=10, think_s=0.5) for name in "abc"
    )
    models = tuple(ModelSpec(name=name, need_bytes=BIG, load_s=10) for name in "abc")
    bounds = [
        most_served_s(
            Trace(
                name="places",
                about="",
                devices=devices(*[24] * count),
                models=models,
                sessions=sessions,
                horizon_s=600,
            )
        )
        for count in (1, 2, 3)
    ]
    assert bounds == pytest.approx([590, 1160, 1720], rel=0.05)


def test_sessions_off_the_grid_are_not_bounded() -> None:
    trace = Trace(
        name="odd",
        about="",
        devices=devices(24),
        models=(ModelSpec(name="a", need_bytes=BIG, load_s=10),),
        sessions=(Session(model="a", start=1, end=600, service_s=10, think_s=5),),
        horizon_s=600,
    )
    with pytest.raises(ValueError, match="no multiple"):
        most_served_s(trace)


@given(st.lists(st.sampled_from("abcd"), max_size=9), st.integers(1, 3))
def test_no_order_of_evictions_needs_fewer_loads(models: list[str], count: int) -> None:
    @cache
    def fewest(at: int, loaded: frozenset[str]) -> int:
        if at == len(models):
            return 0
        if models[at] in loaded:
            return fewest(at + 1, loaded)
        with_it = loaded | {models[at]}
        if len(with_it) <= count:
            return 1 + fewest(at + 1, with_it)
        return 1 + min(fewest(at + 1, with_it - {gone}) for gone in loaded)

    assert fewest_loads(models, count) == fewest(0, frozenset())
