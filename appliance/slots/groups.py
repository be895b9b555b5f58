"""Which devices go together: close ones, and such that later groups still find room. Pure."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import combinations
from math import comb
from operator import attrgetter

from appliance.slots.occupancy import DeviceState

Group = tuple[DeviceState, ...]
_Order = Callable[[DeviceState], tuple[object, ...]]

# All pairs and quadruples of eight devices are looked at, and all pairs of fourteen.
_MOST_GROUPS = 100
_UNKNOWN = 9
# NVLink and a common PCIe switch; farther devices are no group worth keeping together.
_WORTH_KEEPING = (0, 1)
_SAME_NUMA = 2
_POSITION = attrgetter("position")


class Islands:
    """Devices that are linked, for each kind of link, and which of them nobody uses."""

    def __init__(self, states: Sequence[DeviceState]) -> None:
        self._states = states

    @cached_property
    def _of(self) -> list[dict[str, int]]:
        """The number of a device's island, for each kind of link and all that are closer."""
        if not any(state.room.links for state in self._states):
            return []
        known = {state.room.id for state in self._states}
        near = {
            state.room.id: [
                (link, peer)
                for peer, link in state.room.links.items()
                if link <= _SAME_NUMA and peer in known
            ]
            for state in self._states
        }
        return [_connected(near, farthest) for farthest in range(_SAME_NUMA + 1)]

    @cached_property
    def _unused(self) -> list[dict[int, int]]:
        """How many devices of an island nobody uses."""
        counts = []
        for islands in self._of:
            unused = dict.fromkeys(islands.values(), 0)
            for state in self._states:
                unused[islands[state.room.id]] += _is_unused(state)
            counts.append(unused)
        return counts

    def loss(self, group: Group) -> list[int]:
        """For each close kind of link how much smaller the largest groups become, in devices.

        A group of tensor parallel ranks takes a power of two of unused, linked devices.
        """
        lost = []
        for kind in _WORTH_KEEPING[: len(self._of)]:
            islands, unused = self._of[kind], self._unused[kind]
            taken: dict[int, int] = {}
            for state in group:
                if _is_unused(state):
                    island = islands[state.room.id]
                    taken[island] = taken.get(island, 0) + 1
            lost.append(
                sum(
                    _largest_group(unused[island]) - _largest_group(unused[island] - count)
                    for island, count in taken.items()
                )
            )
        return lost

    def groups(self, states: Sequence[DeviceState], size: int, order: _Order) -> Iterator[Group]:
        """All groups of that size where they are few, else the best ones of each island.

        `order` says which devices are better than others; the states come by index.
        """
        if comb(len(states), size) <= _MOST_GROUPS:
            yield from combinations(states, size)
            return
        ordered = sorted(states, key=order)
        yield _by_index(ordered[:size])
        for islands in self._of:
            members: dict[int, list[DeviceState]] = {}
            for state in ordered:
                members.setdefault(islands[state.room.id], []).append(state)
            # Where no island is large enough, the largest ones together come closest.
            largest = sorted(members.values(), key=len, reverse=True)
            together = [state for island in largest for state in island]
            for island in (*members.values(), together):
                if len(island) >= size:
                    yield _by_index(island[:size])


def distance(group: Group) -> tuple[int, int]:
    """The worst link within a group, and the sum of all: collectives wait for the slowest."""
    if len(group) == 1:
        return (0, 0)
    ends = [(state.room.id, state.room.links) for state in group]
    found = [
        min(links.get(there, _UNKNOWN), back.get(here, _UNKNOWN))
        for (here, links), (there, back) in combinations(ends, 2)
    ]
    return (max(found), sum(found))


def _by_index(states: Sequence[DeviceState]) -> Group:
    return tuple(sorted(states, key=_POSITION))


def _is_unused(state: DeviceState) -> bool:
    return state.room.is_usable and not state.neighbours


def _largest_group(devices: int) -> int:
    """A power of two; a single device is no group."""
    return 1 << (devices.bit_length() - 1) if devices > 1 else 0


def _connected(near: dict[str, list[tuple[int, str]]], farthest: int) -> dict[str, int]:
    """The number of each device's island; `near` are its peers with their links."""
    islands: dict[str, int] = {}
    for number, start in enumerate(near):
        queue = [start]
        while queue:
            device = queue.pop()
            if device in islands:
                continue
            islands[device] = number
            queue += [
                peer for link, peer in near[device] if link <= farthest and peer not in islands
            ]
    return islands
