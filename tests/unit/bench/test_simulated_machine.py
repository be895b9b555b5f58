import pytest

from appliance.slots.decision import Policy
from tests.bench.slots.baselines import (
    FirstComeFirstServed,
    LeastRecentlyUsed,
    LeastRecentlyUsedInOrder,
)
from tests.bench.slots.parts import ModelSpec, Request, Session, Trace, devices
from tests.bench.slots.product import Appliance
from tests.bench.slots.report import OURS, Optimum, result, verdict
from tests.bench.slots.traces import all_traces
from tests.bench.slots.world import Account, World
from tests.bench.slots.world import Policy as AnyPolicy

BIG = 20 * 1024**3


def model(name: str, load_s: float = 10.0) -> ModelSpec:
    """One that a device of 24 GiB holds alone."""
    return ModelSpec(name=name, need_bytes=BIG, load_s=load_s, slowdown=0.0)


def trace(*asked: tuple[float, str], count: int = 1, service_s: float = 5.0) -> Trace:
    return Trace(
        name="small",
        about="",
        devices=devices(*[24] * count),
        models=tuple(model(name) for name in sorted({name for _, name in asked})),
        requests=tuple(Request(model=name, at=at, service_s=service_s) for at, name in asked),
        horizon_s=1000.0,
    )


def run(small: Trace, policy: AnyPolicy | None = None) -> Account:
    return World(small, policy or Appliance()).run()


def waits(account: Account) -> dict[tuple[float, str], float]:
    return {(request.at, request.model): wait for wait, request in account.waits}


def test_those_who_want_the_same_model_share_one_load() -> None:
    account = run(trace((0, "a"), (1, "a"), (9, "a"), (11, "a")))
    assert account.loads == 1
    assert waits(account) == {(0, "a"): 10, (1, "a"): 9, (9, "a"): 1, (11, "a"): 0}


def test_a_swap_takes_the_release_and_the_load() -> None:
    account = run(trace((0, "a"), (100, "b")))
    assert account.loads == 2
    assert waits(account)[100, "b"] == 11


def test_models_on_different_devices_load_at_the_same_time() -> None:
    account = run(trace((0, "a"), (0, "b"), count=2))
    assert waits(account) == {(0, "a"): 10, (0, "b"): 10}


def test_engine_that_is_full_makes_further_requests_wait_inside() -> None:
    small = trace((0, "a"), (0, "a"))
    alone = ModelSpec(name="a", need_bytes=BIG, load_s=10, concurrency=1, slowdown=0.0)
    world = World(Trace(**{**vars(small), "models": (alone,), "horizon_s": 18.0}), Appliance())
    account = world.run()
    assert account.served_s == 8
    assert account.busy_s == {"gpu-0": 8}


def test_full_engine_is_slower_than_an_empty_one() -> None:
    busy = ModelSpec(name="a", need_bytes=BIG, load_s=10, concurrency=2, slowdown=0.5)
    small = trace((0, "a"), (0, "a"), service_s=8.0)
    account = World(Trace(**{**vars(small), "models": (busy,)}), Appliance()).run()
    assert account.busy_s == {"gpu-0": 10}
    assert account.served_s == 16


def test_work_after_the_horizon_does_not_count() -> None:
    small = trace((0, "a"))
    account = World(Trace(**{**vars(small), "horizon_s": 12.0}), Appliance()).run()
    assert account.served_s == 2
    assert account.busy_s == {"gpu-0": 2}


def test_client_of_a_session_asks_again_after_the_answer_and_a_pause() -> None:
    small = Trace(
        name="session",
        about="",
        devices=devices(24),
        models=(model("a"),),
        sessions=(Session(model="a", start=0, end=40, service_s=5, think_s=10),),
        horizon_s=1000,
    )
    assert waits(run(small)) == {(0, "a"): 10, (25, "a"): 0}


def test_idle_engine_goes_after_its_timeout() -> None:
    small = Trace(**{**vars(trace((0, "a"), (100, "a"))), "idle_timeout_s": 30.0})
    assert run(small).loads == 2


def test_policy_cannot_over_commit_a_device() -> None:
    world = World(trace((0, "a"), (0, "b")), Appliance())
    world.start("a", ["gpu-0"])
    with pytest.raises(AssertionError, match="two starts"):
        world.start("b", ["gpu-0"])
    world.engines["a"].state = world.engines["a"].state.READY
    with pytest.raises(AssertionError, match="over-commit"):
        world.start("b", ["gpu-0"])


def test_policy_cannot_stop_a_busy_engine() -> None:
    world = World(trace((0, "a")), Appliance())
    world.start("a", ["gpu-0"])
    with pytest.raises(AssertionError, match="busy"):
        world.stop("a")


def test_fifo_lets_nobody_overtake() -> None:
    account = run(trace((0, "a"), (11, "b"), (12, "a")), FirstComeFirstServed())
    assert account.loads == 3
    assert waits(account) == {(0, "a"): 10, (11, "b"): 15, (12, "a"): 30}


def test_lru_in_order_holds_up_only_who_comes_behind_a_wait_for_room() -> None:
    asked = ((0.0, "a"), (11.0, "b"), (12.0, "a"), (13.0, "b"))
    account = run(trace(*asked), LeastRecentlyUsedInOrder())
    assert waits(account)[11, "b"] == 15
    assert waits(account)[12, "a"] == 30
    assert waits(account)[13, "b"] == 45


def test_lru_takes_the_place_of_the_engine_that_was_used_longest_ago() -> None:
    asked = ((0.0, "a"), (0.0, "b"), (20.0, "a"), (50.0, "c"), (80.0, "a"), (81.0, "b"))
    account = run(trace(*asked, count=2), LeastRecentlyUsed())
    assert waits(account)[80, "a"] == 0
    assert waits(account)[81, "b"] == 11


class Deaf(Appliance):
    """Never does anything for one model."""

    def __init__(self, model: str, until: float) -> None:
        super().__init__(Policy(max_wait_s=15.0))
        self._model, self._until = model, until

    def act(self, world: World) -> bool:
        self.bound.look(world)
        queue = world.queues.get(self._model)
        if not queue or world.now >= self._until:
            return super().act(world)
        hidden, world.queues[self._model] = queue, type(queue)()
        try:
            return super().act(world)
        finally:
            world.queues[self._model] = hidden


def test_wait_beyond_the_bound_is_noticed() -> None:
    policy = Deaf("b", until=200.0)
    run(trace((0, "a"), (30, "b")), policy)
    assert [text.split(" at ")[0] for text in policy.bound.broken] == ["b waited 181.0 s"]


def test_wish_that_is_never_served_is_noticed() -> None:
    policy = Deaf("b", until=1e9)
    account = run(trace((0, "a"), (30, "b")), policy)
    assert policy.bound.unserved() == ["b"]
    assert account.never_served == 1


def test_verdict_names_what_does_not_hold() -> None:
    small = trace((0, "a"), (30, "b"))
    policies: list[AnyPolicy] = [
        Deaf("b", until=200.0),
        FirstComeFirstServed(),
        LeastRecentlyUsedInOrder(),
    ]
    results = {each.name: result(small, each, World(small, each).run()) for each in policies}
    judged = verdict(results, Optimum(served_s=1000.0, loads_in_order=2, wait_p95_s=None))
    assert OURS in results
    assert judged.broken == [
        "a longer p95 wait than fifo",
        "a longer p95 wait than lru",
        "the bound on waiting",
        "85% of the optimum's serving time",
    ]


def test_each_run_sees_the_same_traces() -> None:
    assert all_traces() == all_traces()
    assert len({each.name for each in all_traces()}) == len(all_traces())
