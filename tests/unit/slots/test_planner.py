from appliance.slots.planner import plan
from appliance.slots.plans import (
    DeviceRoom,
    Evict,
    Option,
    Place,
    PlanRequest,
    Refuse,
    Resident,
    Variant,
    Wait,
)
from appliance.units import GIB


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


def linked(count: int, island: int, free: dict[int, int] | None = None) -> list[DeviceRoom]:
    """Devices of 24 GiB; those of an island are linked by NVLink, all others through the system."""
    return [
        DeviceRoom(
            id=f"GPU-{index}",
            index=index,
            total_bytes=24 * GIB,
            free_bytes=(free or {}).get(index, 24) * GIB,
            links={
                f"GPU-{other}": 0 if other // island == index // island else 3
                for other in range(count)
                if other != index
            },
        )
        for index in range(count)
    ]


def test_group_goes_to_linked_devices() -> None:
    rooms = linked(4, island=2, free={0: 10, 1: 24, 2: 24, 3: 24})
    assert indices(plan(rooms, [], request(20, tp_size=2))) == [2, 3]


def test_group_goes_to_linked_devices_of_a_large_machine() -> None:
    rooms = linked(32, island=4, free=dict.fromkeys((1, 6, 9, 14, 17, 22, 25, 28, 29), 10))
    assert indices(plan(rooms, [], request(20, tp_size=2)))[0] % 4 in {0, 2}
    assert indices(plan(rooms, [], request(5, tp_size=4))) in [
        list(range(first, first + 4)) for first in range(0, 32, 4)
    ]


def test_single_device_goes_where_the_linked_peer_is_in_use() -> None:
    rooms = linked(4, island=2, free={0: 24, 1: 24, 2: 24, 3: 8})
    assert indices(plan(rooms, [resident("a", 16, 3)], request(8))) == [2]


def test_linked_pair_stays_whole_for_a_later_group() -> None:
    rooms = linked(4, island=2, free={0: 24, 1: 24, 2: 16, 3: 16})
    there = [resident("a", 8, 2), resident("b", 8, 3)]
    assert indices(plan(rooms, there, request(8))) == [2]
    assert indices(plan(rooms, there, request(20))) == [0]


def test_victims_on_linked_devices_go_where_the_cost_is_the_same() -> None:
    rooms = linked(4, island=2, free=dict.fromkeys(range(4), 0))
    there = [resident(name, 24, at, cost_s=5.2) for at, name in enumerate("abcd")]
    there[0] = resident("a", 24, 0, cost_s=5.3, is_pinned=True)
    decision = plan(rooms, there, request(20, tp_size=2))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["c", "d"]


def test_cheapest_victims_go_though_others_were_used_less_recently() -> None:
    rooms = [room(0, 24, 0), room(1, 24, 0)]
    there = [
        resident("old-and-slow", 24, 0, last_used=1.0, cost_s=60.0),
        resident("new-and-quick", 24, 1, last_used=9.0, cost_s=0.5),
    ]
    decision = plan(rooms, there, request(20))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["new-and-quick"]


def test_two_cheap_victims_go_before_a_dear_one() -> None:
    there = [
        resident("a", 12, 0, cost_s=1.0),
        resident("b", 12, 0, cost_s=1.0),
        resident("dear", 24, 1, cost_s=30.0),
    ]
    decision = plan([room(0, 24, 0), room(1, 24, 0)], there, request(20))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["a", "b"]


def test_engine_that_spans_a_group_frees_all_of_it() -> None:
    spanning = Resident(
        engine_id="eng_wide",
        model="wide",
        bytes_by_device={"GPU-0": 24 * GIB, "GPU-1": 24 * GIB},
        last_used=0.0,
        cost_s=3.0,
    )
    there = [spanning, resident("c", 24, 2, cost_s=2.0), resident("d", 24, 3, cost_s=2.0)]
    rooms = [room(index, 24, 0) for index in range(4)]
    decision = plan(rooms, there, request(20, tp_size=2))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["wide"]


def options(*ways: tuple[int, int], **more: object) -> PlanRequest:
    return PlanRequest(
        model="wanted",
        options=tuple(Option(size, need * GIB) for size, need in ways),
        **more,  # type: ignore[arg-type]
    )


def test_first_option_that_fits_is_taken() -> None:
    rooms = [room(index, 24, 24) for index in range(4)]
    assert len(indices(plan(rooms, [], options((1, 20), (2, 11))))) == 1
    assert len(indices(plan(rooms, [], options((1, 40), (2, 21), (4, 11))))) == 2


def test_wider_option_is_taken_before_anybody_goes() -> None:
    rooms = [room(0, 24, 14), room(1, 24, 14)]
    there = [resident("a", 10, 0), resident("b", 10, 1)]
    decision = plan(rooms, there, options((1, 20), (2, 11)))
    assert isinstance(decision, Place)
    assert indices(decision) == [0, 1]


def test_avoided_devices_are_not_used() -> None:
    rooms = [room(0, 24, 24), room(1, 24, 24)]
    assert indices(plan(rooms, [], options((1, 8), avoid=frozenset({"0"})))) == [1]
    assert indices(plan(rooms, [], options((1, 8), avoid=frozenset({"GPU-0"})))) == [1]


def test_exclusive_model_shares_with_nobody() -> None:
    there = [resident("a", 4, 0, cost_s=1.0)]
    alone = options((1, 8), is_exclusive=True)
    assert indices(plan([room(0, 24, 20), room(1, 16, 16)], there, alone)) == [1]
    decision = plan([room(0, 24, 20)], there, alone)
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["a"]


def test_nothing_is_placed_beside_an_exclusive_engine() -> None:
    there = [resident("alone", 4, 0, is_exclusive=True)]
    assert indices(plan([room(0, 24, 20), room(1, 16, 16)], there, request(8))) == [1]
    decision = plan([room(0, 24, 20)], there, request(8))
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["alone"]
    kept = [resident("alone", 4, 0, is_exclusive=True, is_pinned=True)]
    assert isinstance(plan([room(0, 24, 20)], kept, request(8)), Refuse)


def refused(decision: object) -> Refuse:
    assert isinstance(decision, Refuse), decision
    return decision


def commands(decision: object) -> list[str]:
    return [each.command for each in refused(decision).suggestions]


def test_refusal_names_who_holds_what() -> None:
    there = [
        resident("mine", 12, 0, is_pinned=True),
        resident("first", 4, 0, is_pinned=True, is_always_on=True),
        resident("other", 2, 0),
    ]
    decision = refused(plan([room(0, 24, 3)], there, request(20)))
    assert [(each.model, each.held_bytes // GIB, each.reason) for each in decision.holders] == [
        ("mine", 12, "pinned"),
        ("first", 4, "always on"),
        (None, 3, "other processes"),
    ]
    assert [each.most_bytes // GIB for each in decision.have] == [5]
    assert "Other processes hold 3.0 GiB" in decision.message


def test_refusal_suggests_to_stop_the_fewest_pinned_models() -> None:
    there = [
        resident("big", 12, 0, is_pinned=True),
        resident("small-1", 6, 0, is_pinned=True),
        resident("small-2", 6, 0, is_pinned=True),
    ]
    assert commands(plan([room(0, 24, 0)], there, request(12))) == ["appliance stop big"]
    assert commands(plan([room(0, 24, 0)], there, request(24))) == [
        "appliance stop big && appliance stop small-1 && appliance stop small-2"
    ]


def test_refusal_suggests_of_each_kind_the_first_change_that_fits() -> None:
    def variant(kind: str, *ways: tuple[int, int]) -> Variant:
        name = f"{kind} {ways[0][1]}"
        return Variant(kind=kind, text=name, command=name, options=options(*ways).options)

    wanted = options(
        (1, 40),
        variants=(
            variant("context", (1, 30)),
            variant("context", (1, 24)),
            variant("context", (1, 12)),
            variant("kv", (1, 36)),
            variant("tp", (4, 11)),
            variant("tp", (2, 21)),
        ),
    )
    rooms = [room(0, 24, 24), room(1, 24, 24)]
    assert commands(plan(rooms, [], wanted)) == ["context 24", "tp 21"]


def test_refusal_suggests_to_lift_the_owners_restrictions() -> None:
    rooms = [room(0, 8, 8), room(1, 24, 24)]
    assert commands(plan(rooms, [], options((1, 20), devices=frozenset({"0"})))) == [
        "appliance set wanted --device any"
    ]
    assert commands(plan(rooms, [], options((1, 20), avoid=frozenset({"1"})))) == [
        "appliance set wanted --avoid none"
    ]
    both = options((1, 20), avoid=frozenset({"1"}), devices=frozenset({"0"}))
    assert commands(plan(rooms, [], both)) == ["appliance set wanted --device any --avoid none"]
    there = [resident("mine", 2, 1, is_pinned=True)]
    decision = plan([rooms[0], room(1, 24, 22)], there, options((1, 20), is_exclusive=True))
    assert commands(decision) == ["appliance set wanted --no-exclusive", "appliance stop mine"]


def test_refusal_that_nothing_helps_says_so() -> None:
    decision = refused(plan([room(0, 24, 24)], [], request(100)))
    assert decision.suggestions == ()
    assert "a smaller model" in decision.hint


def test_refusal_on_a_large_machine_stays_short() -> None:
    there = [resident(f"m{index}", 24, index, is_pinned=True) for index in range(64)]
    decision = refused(plan([room(index, 24, 0) for index in range(64)], there, request(20)))
    assert len(decision.message) < 400
    assert "devices 0 to 63: 0 B free of 24.0 GiB." in decision.message
    rooms = [room(index, 24 + index, 24 + index) for index in range(64)]
    decision = refused(plan(rooms, [], request(200)))
    assert "and 56 more" in decision.message


def test_sleeping_engine_of_the_model_itself_is_in_nobodys_way() -> None:
    there = [resident("wanted", 2, 0), resident("a", 22, 0, cost_s=9.0)]
    alone = options((1, 20), is_exclusive=True)
    decision = plan([room(0, 24, 0)], there, alone)
    assert isinstance(decision, Evict)
    assert names(decision.victims) == ["a"]
    assert isinstance(plan([room(0, 24, 22)], there[:1], alone), Place)
