import asyncio
from datetime import UTC, datetime

import pytest

from appliance.estimate.estimator import Estimate
from appliance.protocol.engines import EngineState, Failure, FailureCause
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.registry import KnownModel
from appliance.slots.plans import DeviceRoom
from appliance.slots.slot import Slot, Waiter
from appliance.slots.views import model_state, model_view, percentile, placement_of

FAILURE = Failure(
    cause=FailureCause.CRASHED, message="it fell over", hint="", at=datetime(2026, 1, 1, tzinfo=UTC)
)
WANTED = Estimate(weights_bytes=10, kv_cache_bytes=5, context_bytes=2)
ROOMS = tuple(
    DeviceRoom(id=f"GPU-{index}", index=index, total_bytes=100, free_bytes=50) for index in range(2)
)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.95, None),
        ([0.25], 0.95, 0.25),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
        ([float(value) for value in range(1, 11)], 0.95, 10.0),
        ([0.12345], 0.5, 0.123),
    ],
)
def test_percentile(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_model_that_nobody_wants_is_stopped() -> None:
    assert model_state(Slot("m")) is EngineState.STOPPED


def test_wanted_model_is_queued_and_freeing_once_others_go_for_it() -> None:
    slot = Slot("m", wanted_since=1.0)
    assert model_state(slot) is EngineState.QUEUED
    slot.swap_evicted = ["other"]
    assert model_state(slot) is EngineState.FREEING


def test_failure_shows_until_somebody_wants_the_model_again() -> None:
    slot = Slot("m", failure=FAILURE)
    assert model_state(slot) is EngineState.FAILED
    slot.wanted_since = 5.0
    assert model_state(slot) is EngineState.QUEUED


async def test_request_that_was_answered_or_went_away_wants_nothing_more() -> None:
    slot = Slot("m")
    waiter = Waiter(asyncio.get_running_loop().create_future(), since=3.0)
    slot.waiters.append(waiter)
    assert slot.oldest_wish() == 3.0
    assert model_state(slot) is EngineState.QUEUED
    waiter.granted.cancel()
    assert slot.oldest_wish() is None
    assert model_state(slot) is EngineState.STOPPED


def test_view_of_a_model_whose_files_are_gone() -> None:
    known = KnownModel(
        id="m",
        settings=ModelSettings(path="/models/x", task=Task.GENERATE),
        facts=None,
        problem="no config.json",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    slot = Slot("m", failure=FAILURE, waits_for="waits for a")
    slot.first_token_s.extend([0.3, 0.1, 0.2])
    wanted = Estimate(context_bytes=7)
    view = model_view(known, slot, wanted=wanted, idle_timeout_s=10.0, sleep=[], now=0.0)
    assert view.architecture == "unknown"
    assert (view.context_length, view.weights_bytes, view.need_bytes) == (0, 0, 7)
    assert view.waits_for == "waits for a"
    assert view.failure == FAILURE
    assert view.ttft_p95_s == 0.3
    assert view.idle_unload_at is None
    assert view.in_flight == 0


def test_placement_has_a_share_for_each_rank() -> None:
    placement = placement_of(ROOMS, WANTED)
    assert placement.tp_size == 2
    assert [(share.device_id, share.memory_bytes) for share in placement.shares] == [
        ("GPU-0", 17),
        ("GPU-1", 17),
    ]
