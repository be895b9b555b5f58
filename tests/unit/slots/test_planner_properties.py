"""What holds in every world, against a search that tries everything."""

import random
from dataclasses import replace

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
from tests.unit.slots.planner_worlds import (
    WORLDS,
    World,
    exists,
    goes,
    idle,
    least_cost,
    leaving,
    may_use,
    movable,
    without_pins,
    worlds,
)


def answer(world: World) -> Place | Evict | Wait | Refuse:
    return plan(world.rooms, world.residents, world.request)


def option_of(world: World, devices: tuple[DeviceRoom, ...]) -> Option:
    return next(each for each in world.request.options if each.tp_size == len(devices))


@given(worlds())
@WORLDS
def test_never_over_commits_and_goes_only_where_it_may(world: World) -> None:
    decision = answer(world)
    if isinstance(decision, Place | Evict):
        assert len({room.id for room in decision.devices}) == len(decision.devices)
        assert all(may_use(room, world.request) and room.is_usable for room in decision.devices)
        gone = (*leaving(world), *decision.victims) if isinstance(decision, Evict) else ()
        assert goes(world, option_of(world, decision.devices), decision.devices, gone)
    if isinstance(decision, Place):
        assert not any(room.is_starting for room in decision.devices)


@given(worlds())
@WORLDS
def test_answer_is_that_of_a_search_which_tries_everything(world: World) -> None:
    decision = answer(world)
    assert type(decision) is expected_kind(world), decision
    if isinstance(decision, Wait) and decision.residents:
        everybody = [*leaving(world), *movable(world)]
        assert all(each in everybody for each in decision.residents)
        assert all(each.is_leaving or each.is_busy for each in decision.residents)


def expected_kind(world: World) -> type:
    gone = leaving(world)
    if exists(world, (), beside_starts=False):
        return Place
    if exists(world, gone):
        return Wait
    if exists(world, (*gone, *idle(world))):
        return Evict
    if exists(world, (*gone, *movable(world))):
        return Wait
    # What is on a device that cannot be used is not known: only its size counts.
    mended = [
        room if room.is_usable else replace(room, is_usable=True, free_bytes=room.total_bytes)
        for room in world.rooms
    ]
    broken = {room.id for room in world.rooms if not room.is_usable}
    there = [
        each
        for each in (
            replace(
                each,
                bytes_by_device={
                    device: size
                    for device, size in each.bytes_by_device.items()
                    if device not in broken
                },
            )
            for each in world.residents
        )
        if each.bytes_by_device
    ]
    hoped = World(mended, there, world.request)
    return Wait if exists(hoped, (*leaving(hoped), *movable(hoped))) else Refuse


@given(worlds())
@WORLDS
def test_victims_may_go_and_cost_least_and_each_is_needed(world: World) -> None:
    decision = answer(world)
    if isinstance(decision, Evict):
        assert decision.victims
        assert all(each in idle(world) for each in decision.victims)
        is_starting = any(room.is_starting for room in decision.devices)
        cost = sum(each.cost_s for each in decision.victims)
        assert (is_starting, cost) == least_cost(world, idle(world))
        option = option_of(world, decision.devices)
        for spared in decision.victims:
            rest = tuple(each for each in decision.victims if each is not spared)
            assert not goes(world, option, decision.devices, (*leaving(world), *rest))


@given(worlds())
@WORLDS
def test_every_suggestion_works_and_none_to_stop_others_is_missed(world: World) -> None:
    decision = answer(world)
    if isinstance(decision, Refuse):
        for each in decision.suggestions:
            changed = replace(world, residents=without_pins(world, each.gone), request=each.request)
            assert not isinstance(answer(changed), Refuse), each
        kinds = [each.kind for each in decision.suggestions]
        assert ("stop" in kinds) == exists(world, tuple(world.residents))
        assert len(kinds) == len(set(kinds))


@given(worlds(), st.integers(0, 1000))
@WORLDS
def test_order_of_what_is_given_does_not_matter(world: World, seed: int) -> None:
    dice = random.Random(seed)
    rooms, residents = list(world.rooms), list(world.residents)
    dice.shuffle(rooms)
    dice.shuffle(residents)
    assert plan(rooms, residents, world.request) == answer(world)


def test_every_kind_of_answer_is_reached_by_the_generated_worlds() -> None:
    """The properties above say nothing about answers that are never given."""
    seen: set[object] = set()

    @given(worlds())
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    def collect(world: World) -> None:
        decision = answer(world)
        seen.add(type(decision))
        if isinstance(decision, Refuse):
            seen.update(each.kind for each in decision.suggestions)
        if isinstance(decision, Evict) and len(decision.victims) > 1:
            seen.add("several victims")
        if isinstance(decision, Evict) and len(decision.devices) > 1:
            seen.add("victims for a group")

    collect()
    assert seen >= {Place, Evict, Wait, Refuse, "several victims", "victims for a group"}
    assert seen >= {"context", "tp", "devices", "avoid", "exclusive", "stop"}


def random_large_world(dice: random.Random) -> World:
    """A dozen devices or more, where not all groups and sets are tried."""
    count = dice.randint(9, 40)
    residents = []
    for number in range(dice.randint(0, 4 * count)):
        devices = dice.sample(range(count), dice.choice((1, 1, 1, 2, 4)))
        residents.append(
            Resident(
                engine_id=f"eng_{number}",
                model=f"model-{number}",
                bytes_by_device={f"gpu-{index}": dice.randint(1, 30) for index in devices},
                last_used=dice.random(),
                cost_s=dice.choice((0.0, dice.random() * 60)),
                is_busy=dice.random() < 0.2,
                is_pinned=dice.random() < 0.2,
                is_leaving=dice.random() < 0.1,
                is_exclusive=dice.random() < 0.05,
            )
        )
    rooms = []
    island = dice.choice((1, 2, 4, 8))
    for index in range(count):
        held = sum(each.bytes_by_device.get(f"gpu-{index}", 0) for each in residents)
        rooms.append(
            DeviceRoom(
                id=f"gpu-{index}",
                index=index,
                total_bytes=max(80, held),
                free_bytes=max(80, held) - held,
                is_starting=dice.random() < 0.1,
                links={
                    f"gpu-{other}": 0 if other // island == index // island else 3
                    for other in range(count)
                    if other != index
                },
            )
        )
    sizes = dice.sample((1, 2, 4, 8), dice.randint(1, 3))
    need = dice.randint(20, 300)
    request = PlanRequest(
        model="wanted",
        options=tuple(Option(size, need // size) for size in sizes),
        is_exclusive=dice.random() < 0.1,
    )
    return World(rooms, residents, request)


def can_serve(world: World, option: Option, gone: tuple[Resident, ...]) -> bool:
    """Devices are independent of each other, which small worlds show."""
    serving = [
        room
        for room in world.rooms
        if room.total_bytes >= option.need_bytes and goes(world, option, (room,), gone)
    ]
    return len(serving) >= option.tp_size


def test_answers_hold_on_large_machines_too() -> None:
    seen = set()
    for seed in range(200):
        world = random_large_world(random.Random(seed))
        decision = answer(world)
        seen.add(type(decision))
        possible = [
            any(can_serve(world, option, gone) for option in world.request.options)
            for gone in (
                leaving(world),
                (*leaving(world), *idle(world)),
                (*leaving(world), *movable(world)),
            )
        ]
        match decision:
            case Place():
                option = option_of(world, decision.devices)
                assert goes(world, option, decision.devices, ())
            case Evict():
                assert possible[1]
                assert not possible[0]
                option = option_of(world, decision.devices)
                gone = (*leaving(world), *decision.victims)
                assert goes(world, option, decision.devices, gone)
                assert all(each in idle(world) for each in decision.victims)
                for spared in decision.victims:
                    rest = tuple(each for each in gone if each is not spared)
                    assert not goes(world, option, decision.devices, rest)
            case Wait():
                assert possible[0] or (possible[2] and not possible[1])
            case Refuse():
                assert not any(possible)
    assert seen == {Place, Evict, Wait, Refuse}


def test_machine_is_never_over_committed_in_a_long_run() -> None:
    """Each answer is carried out at once; what is held never exceeds what is there."""
    dice = random.Random(3)
    total = {f"gpu-{index}": dice.choice((24, 48, 80)) for index in range(6)}
    residents: list[Resident] = []
    placed = 0
    for number in range(600):
        held = dict.fromkeys(total, 0)
        for each in residents:
            for device, size in each.bytes_by_device.items():
                held[device] += size
        assert all(held[device] <= total[device] for device in total)
        alone = [each for each in residents if each.is_exclusive]
        for each in alone:
            others = [one for one in residents if one is not each]
            assert all(each.bytes_by_device.keys().isdisjoint(o.bytes_by_device) for o in others)
        rooms = [
            DeviceRoom(
                id=device, index=index, total_bytes=total[device],
                free_bytes=total[device] - held[device],
            )
            for index, device in enumerate(total)
        ]  # fmt: skip
        need = dice.randint(2, 90)
        request = PlanRequest(
            model=f"model-{number}",
            options=tuple(Option(size, -(-need // size)) for size in (1, 2, 4)),
            is_exclusive=dice.random() < 0.1,
        )
        now = [replace(each, is_busy=dice.random() < 0.3) for each in residents]
        decision = plan(rooms, now, request)
        if isinstance(decision, Evict):
            gone = {each.engine_id for each in decision.victims}
            residents = [each for each in residents if each.engine_id not in gone]
        if isinstance(decision, Place | Evict):
            placed += 1
            option = next(o for o in request.options if o.tp_size == len(decision.devices))
            residents.append(
                Resident(
                    engine_id=f"eng_{number}",
                    model=request.model,
                    bytes_by_device={room.id: option.need_bytes for room in decision.devices},
                    last_used=float(number),
                    cost_s=dice.random() * 30,
                    is_pinned=dice.random() < 0.02,
                    is_exclusive=request.is_exclusive,
                )
            )
    assert placed > 150
