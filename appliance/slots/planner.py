"""Which devices an engine gets, and who has to go for it. Pure.

Never over-commits; never picks a busy, starting or pinned engine as a victim; finds a placement if
there is one; prefers no eviction, then the fewest victims, then the least recently used ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from appliance.units import format_size


@dataclass(frozen=True, kw_only=True)
class DeviceRoom:
    """One device as the planner sees it. `free_bytes` is what may be promised now."""

    id: str
    index: int
    total_bytes: int
    """What engines may take at most, the reserve taken off."""
    free_bytes: int
    is_usable: bool = True
    is_starting: bool = False
    """An engine starts on it: no other may start at the same time."""


@dataclass(frozen=True, kw_only=True)
class Resident:
    """An engine that holds memory."""

    engine_id: str
    model: str
    bytes_by_device: dict[str, int]
    last_used: float
    is_busy: bool = False
    """Has requests, or starts."""
    is_pinned: bool = False
    is_leaving: bool = False
    """On its way out; its memory comes back by itself."""
    is_exclusive: bool = False
    """Shares its devices with nobody."""
    cost_s: float = 0.0
    """Expected cost of losing it, in seconds of somebody's waiting."""
    rate_per_s: float = 0.0
    """Requests for its model, of late."""
    reload_s: float = 0.0
    """To load or wake it again."""
    ready_since: float | None = None
    """None while it starts."""
    kept_until: float = 0.0
    """Nobody takes its place before; on the same clock as `last_used`."""
    is_batch_only: bool = False
    """All its requests are of batches."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is to be placed: the same number of bytes on each of `tp_size` devices."""

    model: str
    need_bytes: int
    tp_size: int = 1
    devices: frozenset[str] = frozenset()
    """Ids or indices it may use; empty: any."""


@dataclass(frozen=True)
class Place:
    """Start it there now."""

    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True)
class Evict:
    """Stop these engines, then it fits there."""

    victims: tuple[Resident, ...]
    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True)
class Wait:
    """It will fit once these engines are idle or gone, or once a start is over."""

    reason: str
    residents: tuple[Resident, ...]
    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True)
class Refuse:
    """It cannot be placed, whatever leaves by itself."""

    message: str
    hint: str


Plan = Place | Evict | Wait | Refuse

_Cost = tuple[bool, int, float, list[int]]
# Beyond this many engines on a group of devices the smallest set is not searched for.
_MOST_TO_TRY = 10


def plan(rooms: Sequence[DeviceRoom], residents: Sequence[Resident], request: PlanRequest) -> Plan:
    """Decide. Deterministic: ties are broken by device index."""
    allowed = [room for room in rooms if _is_allowed(room, request)]
    possible = [
        group
        for group in combinations(allowed, request.tp_size)
        if all(room.total_bytes >= request.need_bytes for room in group)
    ]
    if not possible:
        return _refuse(rooms, allowed, residents, request)
    groups = [group for group in possible if all(room.is_usable for room in group)]
    if not groups:
        broken = sorted({room.index for group in possible for room in group if not room.is_usable})
        names = ", ".join(str(index) for index in broken)
        return Wait(f"waits until device {names} can be used again", (), possible[0])
    return (
        _place(groups, residents, request)
        or _wait_for_leaving(groups, residents, request)
        or _evict(groups, residents, request)
        or _wait_for_busy(groups, residents, request)
        or _refuse(rooms, allowed, residents, request)
    )


def _is_allowed(room: DeviceRoom, request: PlanRequest) -> bool:
    return not request.devices or room.id in request.devices or str(room.index) in request.devices


def _fits(
    group: Sequence[DeviceRoom], request: PlanRequest, leaving: Sequence[Resident] = ()
) -> bool:
    for room in group:
        back = sum(resident.bytes_by_device.get(room.id, 0) for resident in leaving)
        if room.free_bytes + back < request.need_bytes:
            return False
    return True


def _on(group: Sequence[DeviceRoom], residents: Sequence[Resident]) -> list[Resident]:
    ids = {room.id for room in group}
    return [resident for resident in residents if ids & resident.bytes_by_device.keys()]


def _place(
    groups: list[tuple[DeviceRoom, ...]], residents: Sequence[Resident], request: PlanRequest
) -> Plan | None:
    """Fewest neighbours, then the tightest fit, so that large gaps stay whole."""
    fitting = [group for group in groups if _fits(group, request)]
    if not fitting:
        return None
    free = [group for group in fitting if not any(room.is_starting for room in group)]
    if not free:
        return Wait("waits until another model has started", (), fitting[0])
    return Place(
        min(
            free,
            key=lambda group: (
                len(_on(group, residents)),
                sum(room.free_bytes for room in group),
                [room.index for room in group],
            ),
        )
    )


def _wait_for_leaving(
    groups: list[tuple[DeviceRoom, ...]], residents: Sequence[Resident], request: PlanRequest
) -> Plan | None:
    leaving = [resident for resident in residents if resident.is_leaving]
    for group in groups:
        if _fits(group, request, leaving):
            there = tuple(_on(group, leaving))
            busy = [resident for resident in there if resident.is_busy]
            reason = f"waits until {_names(there)} has given its memory back"
            if busy:
                reason = f"waits for the last requests of {_names(busy)}"
            return Wait(reason, there, group)
    return None


def _evict(
    groups: list[tuple[DeviceRoom, ...]], residents: Sequence[Resident], request: PlanRequest
) -> Plan | None:
    leaving = [resident for resident in residents if resident.is_leaving]
    idle = [
        resident
        for resident in residents
        if not (resident.is_busy or resident.is_pinned or resident.is_leaving)
    ]
    best = _least_victims(groups, request, leaving, idle)
    if best is None:
        return None
    victims, group = best
    return Evict(tuple(victims), group)


def _wait_for_busy(
    groups: list[tuple[DeviceRoom, ...]], residents: Sequence[Resident], request: PlanRequest
) -> Plan | None:
    leaving = [resident for resident in residents if resident.is_leaving]
    movable = [
        resident for resident in residents if not (resident.is_pinned or resident.is_leaving)
    ]
    best = _least_victims(groups, request, leaving, movable)
    if best is None:
        return None
    victims, group = best
    busy = tuple(victim for victim in victims if victim.is_busy)
    return Wait(f"waits for the requests of {_names(busy)}", busy, group)


def _least_victims(
    groups: list[tuple[DeviceRoom, ...]],
    request: PlanRequest,
    leaving: Sequence[Resident],
    candidates: Sequence[Resident],
) -> tuple[list[Resident], tuple[DeviceRoom, ...]] | None:
    """For each group the victims that cannot be spared; the group that loses least."""
    best: tuple[_Cost, list[Resident], tuple[DeviceRoom, ...]] | None = None
    for group in groups:
        victims = sorted(_on(group, candidates), key=lambda each: (each.last_used, each.engine_id))
        if not _fits(group, request, [*leaving, *victims]):
            continue
        victims = _fewest(group, request, leaving, victims)
        cost = (
            any(room.is_starting for room in group),
            len(victims),
            max((victim.last_used for victim in victims), default=0.0),
            [room.index for room in group],
        )
        if best is None or cost < best[0]:
            best = (cost, victims, group)
    return None if best is None else (best[1], best[2])


def _fewest(
    group: Sequence[DeviceRoom],
    request: PlanRequest,
    leaving: Sequence[Resident],
    victims: list[Resident],
) -> list[Resident]:
    """The smallest set that makes room, of those the least recently used; `victims` is sorted."""
    if len(victims) <= _MOST_TO_TRY:
        for size in range(len(victims)):
            sets = [
                list(subset)
                for subset in combinations(victims, size)
                if _fits(group, request, [*leaving, *subset])
            ]
            if sets:
                return min(sets, key=lambda subset: [each.last_used for each in reversed(subset)])
        return victims
    for spared in reversed(list(victims)):
        without = [victim for victim in victims if victim is not spared]
        if _fits(group, request, [*leaving, *without]):
            victims = without
    return victims


def _refuse(
    rooms: Sequence[DeviceRoom],
    allowed: Sequence[DeviceRoom],
    residents: Sequence[Resident],
    request: PlanRequest,
) -> Refuse:
    need = format_size(request.need_bytes)
    if not allowed:
        wanted = ", ".join(sorted(request.devices)) or "any"
        return Refuse(
            f"{request.model} may use the devices {wanted}, and none of them can be used.",
            f"This machine has: {', '.join(f'{room.index} ({room.id})' for room in rooms)}.",
        )
    if len(allowed) < request.tp_size:
        return Refuse(
            f"{request.model} is to be split over {request.tp_size} devices;"
            f" {len(allowed)} can be used.",
            f"`appliance set {request.model} --tp N` splits it over fewer;"
            " `--device` allows others.",
        )
    have = ", ".join(
        f"device {room.index}: {format_size(max(room.free_bytes, 0))} free"
        f" of {format_size(room.total_bytes)}"
        for room in allowed
    )
    holders = [resident for resident in _on(allowed, residents) if resident.is_pinned]
    held = f" Held by models that are never evicted: {_names(holders)}." if holders else ""
    each = f" on each of {request.tp_size} devices" if request.tp_size > 1 else ""
    return Refuse(
        f"{request.model} needs {need}{each}; {have}.{held}",
        f"Use a shorter context or a smaller KV cache"
        f" (`appliance set {request.model} --context N --kv-cache SIZE`)"
        + (f", or unload one: `appliance stop {holders[0].model}`." if holders else "."),
    )


def _names(residents: Sequence[Resident]) -> str:
    return ", ".join(sorted({resident.model for resident in residents})) or "another model"
