"""Nobody waits longer than the bound, whatever comes; the decision and planner are the real ones.

The simulated machine itself asserts that no device is over-committed, that no busy engine is
stopped and that no two engines start at a time on a device.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.slots.decision import Policy
from tests.bench.slots.parts import DeviceSpec, ModelSpec, Request, Session, Trace
from tests.bench.slots.product import Appliance
from tests.bench.slots.world import Account, World

PATIENCE = Policy(max_wait_s=5.0, batch_max_wait_s=30.0, min_loaded_s=1.0, batch_turn_s=8.0)


@st.composite
def worlds(draw: st.DrawFn, *, has_batches: bool) -> Trace:
    """Up to three devices, five models that do not all fit, and requests that come in crowds."""
    count = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(4, 10), min_size=count, max_size=count))
    devices = tuple(
        DeviceSpec(id=f"gpu-{index}", index=index, total_bytes=size)
        for index, size in enumerate(sizes)
    )
    models = []
    for number in range(draw(st.integers(2, 5))):
        tp_size = draw(st.integers(1, min(count, 2)))
        room = sorted(sizes, reverse=True)[tp_size - 1]
        models.append(
            ModelSpec(
                name=f"model-{number}",
                need_bytes=draw(st.integers(max(room - 3, 1), room)),
                load_s=draw(st.integers(1, 8)),
                tp_size=tp_size,
                concurrency=64,
            )
        )
    request = st.builds(
        Request,
        model=st.sampled_from([model.name for model in models]),
        at=st.integers(0, 60).map(float),
        service_s=st.sampled_from([0.1, 1.0, 3.0, 7.0]),
        is_batch=st.booleans() if has_batches else st.just(False),
    )
    requests = draw(st.lists(request, min_size=2, max_size=40))
    return Trace(
        name="drawn",
        about="",
        devices=devices,
        models=tuple(models),
        requests=tuple(sorted(requests, key=lambda each: each.at)),
        horizon_s=60.0,
    )


def run(trace: Trace, policy: Policy = PATIENCE) -> tuple[Account, Appliance]:
    appliance = Appliance(policy)
    return World(trace, appliance).run(), appliance


@settings(max_examples=150, deadline=None)
@given(worlds(has_batches=False))
def test_nobody_waits_longer_than_the_bound(trace: Trace) -> None:
    account, appliance = run(trace)
    assert appliance.bound.broken == []
    assert len(account.waits) == len(trace.requests)
    assert account.never_served == account.refused == 0


@settings(max_examples=150, deadline=None)
@given(worlds(has_batches=True))
def test_batches_wait_no_longer_than_theirs(trace: Trace) -> None:
    account, appliance = run(trace)
    assert appliance.bound.broken == []
    assert account.never_served == account.refused == 0


@settings(max_examples=100, deadline=None)
@given(worlds(has_batches=False))
def test_who_asks_for_a_loaded_model_never_waits(trace: Trace) -> None:
    waited_in_vain: list[str] = []

    class Watched(Appliance):
        def act(self, world: World) -> bool:
            acted = super().act(world)
            waited_in_vain.extend(
                model
                for model, engine in world.engines.items()
                if engine.takes_requests and world.queues.get(model)
            )
            return acted

    World(trace, Watched(PATIENCE)).run()
    assert waited_in_vain == []


CROWD_S = 600.0


def crowd(models: int, batch_devices: int = 1) -> Trace:
    """People who never leave the machine idle, and one batch."""
    return Trace(
        name="crowd",
        about="",
        devices=tuple(
            DeviceSpec(id=f"gpu-{index}", index=index, total_bytes=10)
            for index in range(batch_devices)
        ),
        models=tuple(
            ModelSpec(name=name, need_bytes=10, load_s=4.0)
            for name in (*(f"chat-{number}" for number in range(models)), "batch")
        ),
        sessions=(
            *(
                Session(
                    model=f"chat-{number % models}",
                    start=float(number),
                    end=CROWD_S,
                    service_s=2.0,
                    think_s=0.5,
                )
                for number in range(models * 4)
            ),
            *(
                Session(
                    model="batch",
                    start=10.0,
                    end=CROWD_S,
                    service_s=1.0,
                    think_s=0.01,
                    is_batch=True,
                )
                for _ in range(4)
            ),
        ),
        horizon_s=CROWD_S,
    )


@pytest.mark.parametrize("models", [1, 2, 3])
def test_batch_makes_progress_though_people_never_stop_asking(models: int) -> None:
    account, appliance = run(crowd(models))
    assert appliance.bound.broken == []
    answered = [request for _, request in account.waits if request.is_batch]
    # Once in each of its waits, and the turns of those who were due before, it has a turn.
    turns = CROWD_S / (PATIENCE.batch_max_wait_s + (models + 1) * 20.0)
    assert len(answered) >= turns * PATIENCE.batch_turn_s


def test_people_wait_a_bounded_time_for_a_batch() -> None:
    account, _ = run(crowd(1))
    longest = max(wait for wait, request in account.waits if not request.is_batch)
    # To drain for the batch, load it, its turn; then the same back.
    assert longest <= 2 * (3.0 + 1.0 + 4.0) + PATIENCE.batch_turn_s + PATIENCE.max_wait_s


def test_model_of_two_devices_gets_them_though_smaller_ones_are_wanted_all_the_time() -> None:
    wide = ModelSpec(name="wide", need_bytes=10, load_s=4.0, tp_size=2)
    few = crowd(4, batch_devices=2)
    trace = replace(
        few,
        models=(*few.models[:-1], wide),
        sessions=(
            *(each for each in few.sessions if not each.is_batch),
            Session(model="wide", start=30.0, end=CROWD_S, service_s=2.0, think_s=0.5),
        ),
    )
    account, appliance = run(trace)
    assert appliance.bound.broken == []
    answered = [wait for wait, request in account.waits if request.model == "wide"]
    assert len(answered) >= 5
    # Each of four models may have been due before it.
    assert max(answered) <= PATIENCE.max_wait_s + 6 * (3.0 + 1.0 + 4.0 + 1.0)
