"""Random worlds for the planner, and the answers of a search that tries everything."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from hypothesis import settings
from hypothesis import strategies as st

from appliance.slots.plans import DeviceRoom, Option, PlanRequest, Resident, Variant

# `PLANNER_WORLDS=20000` looks longer; `scripts/test fast` looks shorter.
WORLDS = settings(max_examples=int(os.environ.get("PLANNER_WORLDS", "300")), deadline=None)


@dataclass(frozen=True)
class World:
    rooms: list[DeviceRoom]
    residents: list[Resident]
    request: PlanRequest


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to four devices and five engines; sizes are small so that things nearly fit."""
    count = draw(st.integers(1, 4))
    ids = [f"gpu-{index}" for index in range(count)]
    residents = [_resident(draw, number, ids) for number in range(draw(st.integers(0, 5)))]
    kind_of_links = draw(st.integers(0, 2))
    rooms = []
    for index, device in enumerate(ids):
        total = draw(st.integers(4, 20))
        held = sum(resident.bytes_by_device.get(device, 0) for resident in residents)
        links = {
            other: 0 if kind_of_links == 2 and index // 2 == at // 2 else 3
            for at, other in enumerate(ids)
            if kind_of_links and other != device
        }
        rooms.append(
            DeviceRoom(
                id=device,
                index=index,
                total_bytes=total,
                free_bytes=total - held - draw(st.sampled_from((0, 0, 1, 3))),
                is_usable=draw(st.integers(0, 7)) > 0,
                is_starting=draw(st.integers(0, 5)) == 0,
                links=links,
            )
        )
    return World(rooms, residents, _request(draw, ids))


def _resident(draw: st.DrawFn, number: int, ids: list[str]) -> Resident:
    devices = draw(st.lists(st.sampled_from(ids), min_size=1, max_size=2, unique=True))
    flags = draw(st.integers(0, 63))
    return Resident(
        engine_id=f"eng_{number}",
        model=f"model-{number}",
        bytes_by_device={device: draw(st.integers(1, 8)) for device in devices},
        last_used=draw(st.integers(0, 3)),
        cost_s=draw(st.integers(0, 4)),
        is_busy=flags % 4 == 1,
        is_pinned=flags // 4 % 4 == 1,
        is_leaving=flags // 16 == 1,
        is_exclusive=flags % 8 == 7,
    )


def _request(draw: st.DrawFn, ids: list[str]) -> PlanRequest:
    names = st.sampled_from([*ids, *(str(index) for index in range(len(ids)))])
    some = st.one_of(st.just(frozenset[str]()), st.frozensets(names, min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True))
    need = draw(st.integers(1, 16))
    return PlanRequest(
        model="wanted",
        options=tuple(Option(size, max(need // size, 1)) for size in sizes),
        devices=draw(some),
        avoid=draw(some),
        is_exclusive=draw(st.integers(0, 3)) == 0,
        variants=tuple(
            Variant(
                kind=kind,
                text=f"with {less} less",
                command="appliance set",
                options=(Option(size, max(need // size - less, 1)),),
            )
            for kind, size, less in (("context", 1, 2), ("context", 1, 5), ("tp", 2, 0))
        ),
    )


def groups(world: World) -> Iterator[tuple[Option, tuple[DeviceRoom, ...]]]:
    """Everywhere that it could go if it were alone."""
    request = world.request
    for option in request.options:
        allowed = [
            room
            for room in world.rooms
            if may_use(room, request) and room.is_usable and room.total_bytes >= option.need_bytes
        ]
        for group in combinations(allowed, option.tp_size):
            yield option, group


def may_use(room: DeviceRoom, request: PlanRequest) -> bool:
    names = {room.id, str(room.index)}
    if names & request.avoid:
        return False
    return not request.devices or bool(names & request.devices)


def goes(
    world: World, option: Option, group: tuple[DeviceRoom, ...], gone: tuple[Resident, ...]
) -> bool:
    """Whether it fits there, and disturbs nobody, once those are gone."""
    ids = {each.engine_id for each in gone}
    for room in group:
        there = [each for each in world.residents if room.id in each.bytes_by_device]
        back = sum(each.bytes_by_device[room.id] for each in there if each.engine_id in ids)
        stay = [each for each in there if each.engine_id not in ids]
        if room.free_bytes + back < option.need_bytes:
            return False
        if stay and (world.request.is_exclusive or any(each.is_exclusive for each in stay)):
            return False
    return True


def leaving(world: World) -> tuple[Resident, ...]:
    return tuple(each for each in world.residents if each.is_leaving)


def idle(world: World) -> tuple[Resident, ...]:
    return tuple(
        each for each in world.residents if not (each.is_leaving or each.is_pinned or each.is_busy)
    )


def movable(world: World) -> tuple[Resident, ...]:
    return tuple(each for each in world.residents if not (each.is_leaving or each.is_pinned))


def exists(world: World, gone: tuple[Resident, ...], *, beside_starts: bool = True) -> bool:
    return any(
        goes(world, option, group, gone)
        for option, group in groups(world)
        if beside_starts or not any(room.is_starting for room in group)
    )


def least_cost(world: World, candidates: tuple[Resident, ...]) -> tuple[bool, float] | None:
    """Over all groups and all sets of victims; first whether another start is in the way."""
    best: tuple[bool, float] | None = None
    for option, group in groups(world):
        is_starting = any(room.is_starting for room in group)
        for count in range(len(candidates) + 1):
            for victims in combinations(candidates, count):
                cost = (is_starting, sum(each.cost_s for each in victims))
                is_better = best is None or cost < best
                if is_better and goes(world, option, group, (*leaving(world), *victims)):
                    best = cost
    return best


def without_pins(world: World, engines: frozenset[str]) -> list[Resident]:
    """As if their owner had let them go."""
    return [
        replace(each, is_pinned=False) if each.engine_id in engines else each
        for each in world.residents
    ]
