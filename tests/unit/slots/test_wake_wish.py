from appliance.slots.decision import GiveUp, Policy, Start, Stop, Wish, decide
from appliance.slots.plans import DeviceRoom, Option, PlanRequest, Resident


def room(free_bytes: int) -> DeviceRoom:
    return DeviceRoom(id="d0", index=0, total_bytes=500, free_bytes=free_bytes)


def resident(model: str, held_bytes: int) -> Resident:
    return Resident(
        engine_id=f"eng_{model}",
        model=model,
        bytes_by_device={"d0": held_bytes},
        last_used=0.0,
        ready_since=0.0,
    )


def wish_to_wake(need_bytes: int) -> Wish:
    request = PlanRequest(model="a", options=(Option(1, need_bytes),), devices=frozenset({"d0"}))
    return Wish(request=request, since=0.0)


def test_a_sleeper_is_no_victim_of_its_own_wake() -> None:
    actions = decide([wish_to_wake(350)], [room(300)], [resident("a", 100)], Policy(), 1.0).actions
    assert [type(action) for action in actions] == [GiveUp]


def test_others_make_room_for_a_wake_as_for_a_start() -> None:
    residents = [resident("a", 100), resident("b", 150)]
    actions = decide([wish_to_wake(350)], [room(250)], residents, Policy(), 1.0).actions
    (stop,) = [action for action in actions if isinstance(action, Stop)]
    assert [victim.model for victim in stop.victims] == ["b"]
    actions = decide([wish_to_wake(350)], [room(400)], residents, Policy(), 1.0).actions
    assert [type(action) for action in actions] == [Start]
