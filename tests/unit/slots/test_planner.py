from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.slots.planner import plan
from appliance.slots.plans import (
    DeviceRoom,
    Evict,
    Option,
    Place,
    PlanRequest,
    Refuse,
    Resident,
    Wait,
)
from appliance.units import GIB

Case = tuple[list[DeviceRoom], list[Resident], PlanRequest]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to four devices with engines on them; sizes are small so that things nearly fit."""
    count = draw(st.integers(1, 4))
    ids = [f"gpu-{index}" for index in range(count)]
    residents = [
        Resident(
            engine_id=f"eng_{number}",
            model=f"model-{number}",
            bytes_by_device={
                device: draw(st.integers(1, 8))
                for device in draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
            },
            last_used=draw(st.integers(0, 3)),
            is_busy=draw(st.booleans()),
            is_pinned=draw(st.integers(0, 3)) == 0,
            is_leaving=draw(st.integers(0, 3)) == 0,
        )
        for number in range(draw(st.integers(0, 5)))
    ]
    rooms = []
    for index, device in enumerate(ids):
        total = draw(st.integers(4, 20))
        held = sum(resident.bytes_by_device.get(device, 0) for resident in residents)
        rooms.append(
            DeviceRoom(
                id=device,
                index=index,
                total_bytes=total,
                free_bytes=total - held - draw(st.integers(0, 4)),
                is_usable=draw(st.integers(0, 5)) > 0,
                is_starting=draw(st.integers(0, 4)) == 0,
            )
        )
    names = st.sampled_from([*ids, *(str(index) for index in range(count))])
    request = PlanRequest(
        model="wanted",
        options=(Option(draw(st.integers(1, 3)), draw(st.integers(1, 12))),),
        devices=draw(st.one_of(st.just(frozenset()), st.frozensets(names, min_size=1))),
    )
    return rooms, residents, request


def need(request: PlanRequest) -> int:
    return request.options[0].need_bytes


def may_use(room: DeviceRoom, request: PlanRequest) -> bool:
    wanted = request.devices
    return room.is_usable and (not wanted or room.id in wanted or str(room.index) in wanted)


def possible_groups(case: Case) -> list[tuple[DeviceRoom, ...]]:
    rooms, _, request = case
    allowed = [
        room for room in rooms if may_use(room, request) and room.total_bytes >= need(request)
    ]
    return list(combinations(allowed, request.options[0].tp_size))


def fits_without(
    group: tuple[DeviceRoom, ...], gone: list[Resident] | tuple[Resident, ...], request: PlanRequest
) -> bool:
    return all(
        room.free_bytes + sum(resident.bytes_by_device.get(room.id, 0) for resident in gone)
        >= need(request)
        for room in group
    )


def leaving(case: Case) -> list[Resident]:
    return [resident for resident in case[1] if resident.is_leaving]


def idle(case: Case) -> list[Resident]:
    return [
        resident
        for resident in case[1]
        if not (resident.is_busy or resident.is_pinned or resident.is_leaving)
    ]


thorough = settings(max_examples=100, deadline=None)


@given(cases())
@thorough
def test_place_fits_on_every_device_as_it_is_now(case: Case) -> None:
    decision = plan(*case)
    if isinstance(decision, Place):
        assert all(room.free_bytes >= need(case[2]) for room in decision.devices)
        assert all(room.total_bytes >= need(case[2]) for room in decision.devices)


@given(cases())
@thorough
def test_no_engine_starts_where_another_one_starts(case: Case) -> None:
    decision = plan(*case)
    if isinstance(decision, Place):
        assert not any(room.is_starting for room in decision.devices)


@given(cases())
@thorough
def test_devices_are_distinct_usable_and_allowed(case: Case) -> None:
    decision = plan(*case)
    if isinstance(decision, Wait) and "can be used again" in decision.reason:
        assert any(not room.is_usable for room in decision.devices)
    elif not isinstance(decision, Refuse):
        assert len({room.id for room in decision.devices}) == case[2].options[0].tp_size
        assert all(may_use(room, case[2]) for room in decision.devices)


@given(cases())
@thorough
def test_victims_are_idle_and_make_enough_room(case: Case) -> None:
    decision = plan(*case)
    if isinstance(decision, Evict):
        assert decision.victims
        assert all(victim in idle(case) for victim in decision.victims)
        gone = [*leaving(case), *decision.victims]
        assert fits_without(decision.devices, gone, case[2])


@given(cases())
@thorough
def test_every_victim_is_needed(case: Case) -> None:
    decision = plan(*case)
    if isinstance(decision, Evict):
        for spared in decision.victims:
            rest = [victim for victim in decision.victims if victim is not spared]
            assert not fits_without(decision.devices, [*leaving(case), *rest], case[2])


@given(cases())
@thorough
def test_nobody_is_evicted_while_there_is_room(case: Case) -> None:
    if any(
        fits_without(group, [], case[2]) and not any(room.is_starting for room in group)
        for group in possible_groups(case)
    ):
        assert isinstance(plan(*case), Place)


@given(cases())
@thorough
def test_nobody_is_evicted_for_memory_that_comes_back_by_itself(case: Case) -> None:
    if any(fits_without(group, leaving(case), case[2]) for group in possible_groups(case)):
        assert isinstance(plan(*case), Place | Wait)


@given(cases())
@thorough
def test_never_refused_while_idle_engines_could_make_room(case: Case) -> None:
    gone = [*leaving(case), *idle(case)]
    if any(fits_without(group, gone, case[2]) for group in possible_groups(case)):
        assert not isinstance(plan(*case), Refuse)


@given(cases())
@thorough
def test_refused_only_where_nothing_that_may_go_would_help(case: Case) -> None:
    if isinstance(plan(*case), Refuse):
        gone = [each for each in case[1] if each.is_leaving or not each.is_pinned]
        assert not any(fits_without(group, gone, case[2]) for group in possible_groups(case))


@given(cases())
@thorough
def test_waits_only_for_engines_that_will_leave(case: Case) -> None:
    decision = plan(*case)
    if isinstance(decision, Wait):
        assert all(
            resident.is_leaving or (resident.is_busy and not resident.is_pinned)
            for resident in decision.residents
        )


@given(cases(), st.randoms())
@thorough
def test_order_of_the_engines_does_not_matter(case: Case, random: object) -> None:
    rooms, residents, request = case
    shuffled = list(residents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = plan(rooms, residents, request), plan(rooms, shuffled, request)
    assert type(first) is type(second)
    assert getattr(first, "devices", None) == getattr(second, "devices", None)
    assert getattr(first, "victims", None) == getattr(second, "victims", None)


def room(index: int, total: int, free: int, **more: bool) -> DeviceRoom:
    return DeviceRoom(
        id=f"GPU-{index}",
        index=index,
        total_bytes=total * GIB,
        free_bytes=free * GIB,
        **more,
    )


def resident(name: str, size: int, index: int = 0, **more: float) -> Resident:
    more.setdefault("last_used", 0.0)
    return Resident(
        engine_id=f"eng_{name}",
        model=name,
        bytes_by_device={f"GPU-{index}": size * GIB},
        **more,  # type: ignore[arg-type]
    )


def request(need: int, tp_size: int = 1, devices: str = "") -> PlanRequest:
    return PlanRequest(
        model="wanted",
        options=(Option(tp_size, need * GIB),),
        devices=frozenset(devices.split()),
    )


def indices(decision: object) -> list[int]:
    assert isinstance(decision, Place | Evict | Wait), decision
    return [each.index for each in decision.devices]


def names(residents: tuple[Resident, ...]) -> list[str]:
    return [each.model for each in residents]


def test_empty_device_goes_before_a_shared_one() -> None:
    rooms = [room(0, 24, 12), room(1, 24, 24)]
    assert indices(plan(rooms, [resident("a", 12)], request(8))) == [1]


def test_tightest_gap_is_taken() -> None:
    assert indices(plan([room(0, 80, 80), room(1, 24, 24)], [], request(20))) == [1]


def test_equal_devices_are_taken_by_index() -> None:
    assert indices(plan([room(0, 24, 24), room(1, 24, 24)], [], request(8))) == [0]


def test_device_is_chosen_by_its_id_or_its_index() -> None:
    rooms = [room(0, 24, 24), room(1, 24, 24)]
    assert indices(plan(rooms, [], request(8, devices="GPU-1"))) == [1]
    assert indices(plan(rooms, [], request(8, devices="1"))) == [1]


def test_tensor_parallel_group_spans_distinct_devices() -> None:
    rooms = [room(index, 24, 24) for index in range(4)]
    assert indices(plan(rooms, [], request(20, tp_size=2))) == [0, 1]


def test_least_recently_used_engine_goes() -> None:
    rooms = [room(0, 24, 0), room(1, 24, 0)]
    there = [resident("new", 24, 0, last_used=9.0), resident("old", 24, 1, last_used=5.0)]
    decision = plan(rooms, there, request(20))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["old"]


def test_one_victim_goes_before_two() -> None:
    rooms = [room(0, 24, 0), room(1, 24, 0)]
    there = [
        resident("half-1", 12, 0, last_used=1.0),
        resident("half-2", 12, 0, last_used=2.0),
        resident("whole", 24, 1, last_used=9.0),
    ]
    decision = plan(rooms, there, request(20))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["whole"]


def test_waits_for_a_busy_engine_that_is_the_only_way() -> None:
    decision = plan([room(0, 24, 0)], [resident("a", 24, is_busy=True)], request(20))
    assert isinstance(decision, Wait)
    assert names(decision.residents) == ["a"]
    assert "requests of a" in decision.reason


def test_waits_for_memory_on_its_way_back() -> None:
    there = [resident("going", 20, is_leaving=True), resident("idle", 4)]
    decision = plan([room(0, 24, 0)], there, request(16))
    assert isinstance(decision, Wait)
    assert names(decision.residents) == ["going"]


def test_waits_where_another_engine_starts() -> None:
    decision = plan([room(0, 24, 20, is_starting=True)], [], request(8))
    assert isinstance(decision, Wait)
    assert "started" in decision.reason


def test_goes_beside_the_device_where_another_engine_starts() -> None:
    rooms = [room(0, 24, 20, is_starting=True), room(1, 80, 80)]
    assert indices(plan(rooms, [], request(8))) == [1]


def test_refusal_says_what_is_needed_and_what_is_there() -> None:
    there = [resident("mine", 12, is_pinned=True)]
    decision = plan([room(0, 24, 12), room(1, 16, 16)], there, request(20))
    assert isinstance(decision, Refuse)
    assert "20.0 GiB" in decision.message
    assert "device 0: 12.0 GiB free of 24.0 GiB" in decision.message
    assert "device 1: 16.0 GiB free of 16.0 GiB" in decision.message
    assert "never evicted: mine" in decision.message
    assert "appliance stop mine" in decision.hint


def test_refusal_of_a_split_counts_the_devices() -> None:
    decision = plan([room(0, 24, 24), room(1, 24, 24)], [], request(8, tp_size=4))
    assert isinstance(decision, Refuse)
    assert "over 4 devices; 2 can be used" in decision.message


def test_refusal_of_devices_that_are_not_there_lists_those_that_are() -> None:
    decision = plan([room(0, 24, 24)], [], request(8, devices="7"))
    assert isinstance(decision, Refuse)
    assert "devices 7" in decision.message
    assert "0 (GPU-0)" in decision.hint


def test_device_that_cannot_be_used_now_is_waited_for() -> None:
    decision = plan([room(0, 24, 24, is_usable=False)], [], request(8))
    assert isinstance(decision, Wait)
    assert "device 0" in decision.reason
    assert isinstance(plan([room(0, 24, 24, is_usable=False)], [], request(30)), Refuse)


def test_every_kind_of_answer_is_reached_by_the_generated_cases() -> None:
    """The properties above say nothing about answers that are never given."""
    seen: set[type] = set()

    @given(cases())
    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    def collect(case: Case) -> None:
        seen.add(type(plan(*case)))

    collect()
    assert seen == {Place, Evict, Wait, Refuse}
