import pytest

from appliance.slots.decision import Drain, GiveUp, Hold, Policy, Start, Stop, Wish, decide
from appliance.slots.plans import DeviceRoom, Option, PlanRequest, Resident

POLICY = Policy(max_wait_s=15.0, batch_max_wait_s=900.0, min_loaded_s=2.0, batch_turn_s=60.0)
NOW = 1000.0


def room(index: int = 0, *, free: int, total: int = 10, is_starting: bool = False) -> DeviceRoom:
    return DeviceRoom(
        id=f"gpu-{index}",
        index=index,
        total_bytes=total,
        free_bytes=free,
        is_starting=is_starting,
    )


def wish(
    model: str = "b",
    *,
    need: int = 10,
    waited: float = 1.0,
    waiting: int = 1,
    tp: int = 1,
    switch_s: float = 10.0,
) -> Wish:
    return Wish(
        request=PlanRequest(model=model, options=(Option(tp, need),)),
        since=NOW - waited,
        waiting=waiting,
        waited_s=waited * waiting,
        switch_s=switch_s,
    )


def engine(
    model: str = "a",
    index: int = 0,
    *,
    size: int = 10,
    busy: bool = False,
    batch: bool = False,
    rate: float = 0.0,
    kept_until: float = 0.0,
) -> Resident:
    return Resident(
        engine_id=f"eng_{model}",
        model=model,
        bytes_by_device={f"gpu-{index}": size},
        last_used=NOW - 5,
        is_busy=busy,
        is_batch_only=batch,
        rate_per_s=rate,
        reload_s=10.0,
        ready_since=NOW - 100,
        kept_until=kept_until,
    )


def actions(*wishes: Wish, rooms: list[DeviceRoom], residents: list[Resident]) -> list[object]:
    return list(decide(wishes, rooms, residents, POLICY, NOW).actions)


def test_an_engine_that_nobody_asks_for_goes_at_once() -> None:
    done = actions(wish(), rooms=[room(free=0)], residents=[engine()])
    assert [type(action) for action in done] == [Hold, Stop]


def test_one_request_does_not_displace_a_model_that_many_ask_for() -> None:
    hot = engine(rate=2.0)
    decision = decide([wish()], [room(free=0)], [hot], POLICY, NOW)
    assert [type(action) for action in decision.actions] == [Hold]
    # Its one request is due at 15 s, and would outweigh 40 requests only after that.
    assert decision.again_at == NOW + 14


def test_a_longer_queue_displaces_it() -> None:
    done = actions(wish(waiting=60), rooms=[room(free=0)], residents=[engine(rate=2.0)])
    assert Stop("b", (engine(rate=2.0),)) in done


def test_it_looks_again_when_those_who_wait_will_outweigh_the_others() -> None:
    warm = engine(rate=0.1)
    first = decide([wish(waited=0.0)], [room(free=0)], [warm], POLICY, NOW)
    # 0.1 requests a second in 20 s of loading make 2; one waits, and counts 1 more in 10 s.
    assert first.again_at == pytest.approx(NOW + 10.0)
    later = actions(wish(waited=10.0), rooms=[room(free=0)], residents=[warm])
    assert Stop("b", (warm,)) in later


def test_who_has_waited_long_enough_has_busy_engines_drained() -> None:
    busy = engine(busy=True)
    assert not [
        action
        for action in actions(wish(), rooms=[room(free=0)], residents=[busy])
        if isinstance(action, Drain | Stop)
    ]
    due = actions(wish(waited=15.0), rooms=[room(free=0)], residents=[busy])
    assert Drain("b", (busy,)) in due


def test_an_engine_with_work_keeps_its_place_for_its_turn_even_against_who_is_due() -> None:
    fresh = engine(busy=True, kept_until=NOW + 1.5)
    decision = decide([wish(waited=99.0)], [room(free=0)], [fresh], POLICY, NOW)
    assert [type(action) for action in decision.actions] == [Hold]
    assert decision.again_at == NOW + 1.5


def test_work_of_batches_gives_way_to_people_at_once() -> None:
    batch = engine(busy=True, batch=True)
    assert Drain("b", (batch,)) in actions(wish(), rooms=[room(free=0)], residents=[batch])


def test_a_batch_displaces_nobody_that_people_use_until_it_is_due() -> None:
    used = engine(rate=0.1)
    early = actions(wish(waiting=0, waited=60.0), rooms=[room(free=0)], residents=[used])
    assert [type(action) for action in early] == [Hold]
    due = actions(wish(waiting=0, waited=900.0), rooms=[room(free=0)], residents=[used])
    assert Stop("b", (used,)) in due


def test_a_batch_that_was_due_gets_a_longer_turn() -> None:
    (start,) = actions(wish(waiting=0, waited=900.0), rooms=[room(free=10)], residents=[])
    assert start == Start("b", (room(free=10),), 60.0)
    (start,) = actions(wish(waiting=0, waited=9.0), rooms=[room(free=10)], residents=[])
    assert start == Start("b", (room(free=10),), 2.0)


def test_people_come_before_batches_that_are_not_due_though_they_came_later() -> None:
    batch = wish("batch", waiting=0, waited=500.0)
    done = actions(batch, wish("person"), rooms=[room(free=10)], residents=[])
    assert [action.model for action in done if isinstance(action, Start)] == ["person"]


def test_nobody_younger_gets_what_was_promised_to_who_is_due() -> None:
    busy = engine(busy=True, size=6)
    due, small = wish("due", waited=20.0), wish("small", need=4)
    done = actions(due, small, rooms=[room(free=4)], residents=[busy])
    assert not [action for action in done if isinstance(action, Start)]
    assert Drain("due", (busy,)) in done


def test_who_only_holds_keeps_nobody_from_a_free_place() -> None:
    busy = engine(busy=True, size=6, rate=5.0)
    waiting, small = wish("waiting", waited=5.0), wish("small", need=4)
    done = actions(waiting, small, rooms=[room(free=4)], residents=[busy])
    assert [action.model for action in done if isinstance(action, Start)] == ["small"]


def test_one_start_at_a_time_on_a_device_and_several_on_several() -> None:
    both = [wish("b", need=4), wish("c", need=4)]
    one = actions(*both, rooms=[room(free=10)], residents=[])
    assert [action.model for action in one if isinstance(action, Start)] == ["b"]
    two = actions(*both, rooms=[room(0, free=10), room(1, free=10)], residents=[])
    assert [action.model for action in two if isinstance(action, Start)] == ["b", "c"]


def test_what_fits_nowhere_is_given_up_and_the_rest_goes_on() -> None:
    done = actions(
        wish("huge", need=99, waited=2.0), wish("b"), rooms=[room(free=10)], residents=[]
    )
    assert [type(action) for action in done] == [GiveUp, Start]


def test_who_waits_for_a_broken_device_leaves_the_others_to_the_others() -> None:
    broken = DeviceRoom(id="gpu-1", index=1, total_bytes=10, free_bytes=10, is_usable=False)
    done = actions(
        wish("split", tp=2, waited=50.0), wish("small"), rooms=[room(free=10), broken], residents=[]
    )
    assert [type(action) for action in done] == [Hold, Start]
