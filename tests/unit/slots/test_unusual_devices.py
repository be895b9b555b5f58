"""The planner and devices that are not whole, or that have never answered."""

from appliance.slots.planner import plan
from appliance.slots.plans import DeviceRoom, Option, Place, PlanRequest, Refuse, Wait


def wanted(tp_size: int = 1, need: int = 10) -> PlanRequest:
    return PlanRequest(model="m", options=(Option(tp_size=tp_size, need_bytes=need),))


def instance(number: int) -> DeviceRoom:
    return DeviceRoom(
        id=f"MIG-{number}", index=number, total_bytes=20, free_bytes=20, is_partition=True
    )


def unknown() -> DeviceRoom:
    return DeviceRoom(id="nvidia", index=0, total_bytes=0, free_bytes=0, is_usable=False)


def test_mig_instances_take_models_but_no_groups() -> None:
    rooms = [instance(1), instance(2)]
    assert isinstance(plan(rooms, [], wanted()), Place)
    assert isinstance(plan(rooms, [], wanted(tp_size=2)), Refuse)


def test_a_group_goes_round_a_mig_instance() -> None:
    whole = [DeviceRoom(id=f"GPU-{n}", index=n, total_bytes=20, free_bytes=20) for n in (0, 3)]
    placed = plan([whole[0], instance(1), instance(2), whole[1]], [], wanted(tp_size=2))
    assert isinstance(placed, Place)
    assert [room.id for room in placed.devices] == ["GPU-0", "GPU-3"]


def test_nothing_starts_on_a_device_whose_memory_is_not_back() -> None:
    freeing = DeviceRoom(id="a", index=0, total_bytes=20, free_bytes=15, is_freeing=True)
    waits = plan([freeing], [], wanted())
    assert isinstance(waits, Wait)
    assert waits.reason == "waits until device 0 has its memory back"
    other = DeviceRoom(id="b", index=1, total_bytes=20, free_bytes=20)
    placed = plan([freeing, other], [], wanted())
    assert isinstance(placed, Place)
    assert [room.id for room in placed.devices] == ["b"]


def test_devices_that_have_never_answered_are_waited_for() -> None:
    waits = plan([unknown()], [], wanted())
    assert isinstance(waits, Wait)
    assert "device 0 can be used again" in waits.reason
