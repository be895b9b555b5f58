from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from appliance.gpu.condition import HEALTHY, gpu_fails, xid_noted
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceCause, DeviceHealth, DeviceKind, Link, Occupant
from appliance.slots.ledger import Holding, device_room, device_view


def reading(
    total: int,
    available: int | None,
    kind: DeviceKind = DeviceKind.CPU,
    *,
    by_pid: dict[int, int] | None = None,
    problem: str | None = None,
) -> Reading:
    return Reading(
        id="dev",
        index=0,
        name="Device",
        kind=kind,
        total_bytes=total,
        available_bytes=available,
        used_by_pid=by_pid or {},
        condition=gpu_fails(problem) if problem else HEALTHY,
    )


def holding(
    reserved: int,
    used: int = 0,
    *,
    engine: str = "eng_a",
    device: str = "dev",
    pids: tuple[int, ...] = (),
    is_starting: bool = False,
) -> Holding:
    return Holding(
        occupant=Occupant(
            model="a",
            engine_id=engine,
            reserved_bytes=reserved,
            used_bytes=used,
            weights_bytes=3,
            kv_cache_bytes=2,
            rank=1,
        ),
        device_id=device,
        pids=frozenset(pids),
        is_starting=is_starting,
    )


def free(source: Reading, holdings: list[Holding], reserve: int = 0) -> int:
    return device_room(source, holdings, reserve).free_bytes


def test_ledger_alone_counts_where_nothing_is_measured() -> None:
    assert free(reading(100, None, DeviceKind.SIMULATED), [holding(30), holding(20)]) == 50


def test_reading_counts_where_it_is_smaller() -> None:
    assert free(reading(100, 40), [holding(30, 30)]) == 40


def test_ledger_counts_where_it_is_smaller() -> None:
    assert free(reading(100, 95), [holding(30, 30)]) == 70


def test_promised_memory_that_was_not_taken_is_kept_for_its_engine() -> None:
    # 60 available, but 25 of them are promised to the engine that took 5 of its 30.
    assert free(reading(100, 60), [holding(30, 5)]) == 35


def test_engine_that_takes_more_than_planned_counts_with_what_it_takes() -> None:
    source = reading(100, None, DeviceKind.SIMULATED)
    assert free(source, [holding(30, 45)]) == 55
    assert device_view(source, [holding(30, 45)], 0).reserved_bytes == 45


def test_reserve_is_kept_free() -> None:
    source = reading(100, None, DeviceKind.SIMULATED)
    assert free(source, [holding(30)], reserve=10) == 60
    assert device_room(source, [], 10).total_bytes == 90


def test_driver_tells_what_the_processes_of_an_engine_use() -> None:
    source = reading(100, 50, DeviceKind.GPU, by_pid={7: 20, 8: 5, 9: 25})
    view = device_view(source, [holding(30, pids=(7, 8))], 0)
    assert view.occupants[0].used_bytes == 25
    assert view.other_bytes == 25
    assert view.used_bytes == 50
    assert view.free_bytes == 45


def test_only_what_is_on_the_device_counts() -> None:
    source = reading(100, None, DeviceKind.SIMULATED)
    view = device_view(source, [holding(30, device="elsewhere"), holding(20)], 0)
    assert view.free_bytes == 80
    assert [occupant.reserved_bytes for occupant in view.occupants] == [20]


def test_parts_of_the_plan_and_the_rank_are_shown() -> None:
    view = device_view(reading(100, 80), [holding(30, 20)], 0)
    occupant = view.occupants[0]
    assert (occupant.weights_bytes, occupant.kv_cache_bytes, occupant.rank) == (3, 2, 1)
    assert occupant.used_bytes == 20


def test_engine_that_starts_marks_its_device() -> None:
    assert device_room(reading(100, 80), [holding(30, is_starting=True)], 0).is_starting
    elsewhere = holding(30, device="elsewhere", is_starting=True)
    assert not device_room(reading(100, 80), [elsewhere], 0).is_starting


def test_engine_that_goes_keeps_others_from_its_gpu_and_from_no_other_device() -> None:
    going = replace(holding(30), is_going=True)
    assert device_room(reading(100, 80, DeviceKind.GPU), [going], 0).is_freeing
    assert not device_room(reading(100, 80, DeviceKind.GPU), [holding(30)], 0).is_freeing
    assert not device_room(reading(100, None, DeviceKind.SIMULATED), [going], 0).is_freeing


def test_device_with_a_problem_is_not_used() -> None:
    assert not device_room(reading(0, 0, problem="lost"), [], 0).is_usable
    view = device_view(reading(0, 0, problem="lost"), [], 0)
    assert view.problem == "it does not answer (lost)"
    assert (view.health, view.cause) == (DeviceHealth.QUARANTINED, DeviceCause.GPU_FAILS)
    assert view.remedy


def test_degraded_device_is_used_and_says_why() -> None:
    source = replace(reading(100, 80), condition=xid_noted(31, "a program went wrong", 1))
    view = device_view(source, [], 0)
    assert device_room(source, [], 0).is_usable
    assert view.problem is None
    assert "Xid 31" in (view.note or "")


def test_processes_of_others_are_listed_and_ours_are_not() -> None:
    source = replace(
        reading(100, 40, DeviceKind.GPU, by_pid={7: 20, 8: 5, 9: 25}), process_names={9: "python3"}
    )
    elsewhere = holding(30, device="elsewhere", pids=(8,))
    others = device_view(source, [holding(30, pids=(7,)), elsewhere], 0).processes
    assert [(each.pid, each.name, each.bytes) for each in others] == [(9, "python3", 25)]


def test_free_memory_shrinks_with_what_others_take() -> None:
    calm = reading(100, 50, DeviceKind.GPU, by_pid={7: 30, 9: 20})
    taken = reading(100, 10, DeviceKind.GPU, by_pid={7: 30, 9: 60})
    assert (free(calm, [holding(30, pids=(7,))]), free(taken, [holding(30, pids=(7,))])) == (50, 10)


def test_links_and_names_for_cuda_reach_the_planner() -> None:
    source = replace(reading(100, 80), links={"b": Link.NVLINK}, numa_node=1, visible_as="MIG-a")
    room = device_room(source, [], 0)
    assert (room.links, room.visible_as) == ({"b": 0}, "MIG-a")
    assert device_view(source, [], 0).numa_node == 1


def test_people_never_see_negative_sizes() -> None:
    view = device_view(reading(100, 0), [holding(30, 20), holding(90, 10, engine="eng_b")], 10)
    assert view.free_bytes == 0
    assert device_room(reading(5, 5), [], 10).total_bytes == 0


sizes = st.integers(0, 1000)
holdings = st.lists(st.tuples(sizes, sizes), max_size=4).map(
    lambda pairs: [
        holding(reserved, used, engine=f"eng_{number}", pids=(number,))
        for number, (reserved, used) in enumerate(pairs)
    ]
)


@given(st.integers(1, 4000), st.none() | st.integers(0, 5000), holdings, st.integers(0, 50))
def test_used_and_free_together_are_no_more_than_there_is(
    total: int, available: int | None, held: list[Holding], reserve: int
) -> None:
    view = device_view(reading(total, available), held, reserve)
    ours = sum(occupant.used_bytes for occupant in view.occupants)
    assert view.used_bytes == ours + view.other_bytes
    assert view.other_bytes >= 0
    assert view.reserved_bytes >= ours
    assert view.used_bytes + view.free_bytes <= max(total, ours)


@given(st.integers(1, 4000), st.none() | st.integers(0, 5000), holdings, st.integers(0, 50))
def test_planner_is_promised_no_more_than_people_see(
    total: int, available: int | None, held: list[Holding], reserve: int
) -> None:
    source = reading(total, available)
    room = device_room(source, held, reserve)
    assert max(room.free_bytes, 0) == device_view(source, held, reserve).free_bytes
    assert room.free_bytes <= total - reserve - sum(each.occupant.reserved_bytes for each in held)
    if available is not None:
        assert room.free_bytes <= available - reserve
