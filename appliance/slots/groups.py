"""Which devices go together: close ones, and such that later groups still find room. Pure."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import comb

from appliance.slots.occupancy import DeviceState
from appliance.slots.plans import DeviceRoom

Group = tuple[DeviceState, ...]

# All pairs and quadruples of eight devices are looked at, and all pairs of fourteen.
_MOST_GROUPS = 100
_UNKNOWN = 9
# NVLink and a common PCIe switch; farther devices are no group worth keeping together.
_WORTH_KEEPING = (0, 1)


def candidate_groups(
    states: Sequence[DeviceState], size: int, order: Callable[[DeviceState], object]
) -> Iterator[Group]:
    """All groups where they are few, else for each device the group of its best partners.

    Partners are taken by `order`, which says what a device costs, then by how close they are.
    """
    if size > len(states):
        return
    if comb(len(states), size) <= _MOST_GROUPS:
        yield from combinations(states, size)
        return
    ranks = {id(state): order(state) for state in states}
    seen = set()
    for seed in states:
        partners = sorted(
            (state for state in states if state is not seed),
            key=lambda state: (
                ranks[id(state)],
                _link(seed.room, state.room),
                -len(state.residents),
                state.room.index,
            ),
        )
        group = tuple(
            sorted([seed, *partners[: size - 1]], key=lambda each: (each.room.index, each.room.id))
        )
        ids = tuple(state.room.id for state in group)
        if ids not in seen:
            seen.add(ids)
            yield group


def distance(group: Group) -> tuple[int, int]:
    """The worst link within a group, and the sum of all: collectives wait for the slowest."""
    links = [_link(one.room, other.room) for one, other in combinations(group, 2)]
    return (max(links, default=0), sum(links))


class Islands:
    """Devices that are linked closely, and which of them nobody uses."""

    def __init__(self, states: Sequence[DeviceState]) -> None:
        self._of: list[dict[str, int]] = []
        """For each kind of link the island of a device."""
        self._intact: list[dict[int, int]] = []
        """For each kind of link the unused devices of an island."""
        if not any(state.room.links for state in states):
            return
        for farthest in _WORTH_KEEPING:
            islands = _connected([state.room for state in states], farthest)
            intact: dict[int, int] = {}
            for state in states:
                if _is_intact(state):
                    island = islands[state.room.id]
                    intact[island] = intact.get(island, 0) + 1
            self._of.append(islands)
            self._intact.append(intact)

    def loss(self, group: Group) -> tuple[int, ...]:
        """For each kind of link how much smaller the largest groups become, in devices.

        A group of tensor parallel ranks takes a power of two of unused, linked devices.
        """
        lost = []
        for islands, intact in zip(self._of, self._intact, strict=True):
            taken: dict[int, int] = {}
            for state in group:
                if _is_intact(state):
                    island = islands[state.room.id]
                    taken[island] = taken.get(island, 0) + 1
            lost.append(
                sum(
                    _largest_group(intact[island]) - _largest_group(intact[island] - count)
                    for island, count in taken.items()
                )
            )
        return tuple(lost)


def _is_intact(state: DeviceState) -> bool:
    return state.room.is_usable and not state.neighbours


def _largest_group(devices: int) -> int:
    """A power of two; a single device is no group."""
    return 1 << (devices.bit_length() - 1) if devices > 1 else 0


def _link(one: DeviceRoom, other: DeviceRoom) -> int:
    return min(one.links.get(other.id, _UNKNOWN), other.links.get(one.id, _UNKNOWN))


def _connected(rooms: Sequence[DeviceRoom], farthest: int) -> dict[str, int]:
    """The number of each device's island."""
    by_id = {room.id: room for room in rooms}
    islands: dict[str, int] = {}
    for number, start in enumerate(rooms):
        queue = [start]
        while queue:
            room = queue.pop()
            if room.id in islands:
                continue
            islands[room.id] = number
            queue += [
                by_id[peer]
                for peer, link in room.links.items()
                if link <= farthest and peer in by_id and peer not in islands
            ]
    return islands
