"""Who is on which device, and how hard it is to get them off. Pure; made once for a decision."""

from collections.abc import Sequence
from enum import IntEnum

from appliance.slots.plans import DeviceRoom, Option, PlanRequest, Resident


class Tie(IntEnum):
    """What has to happen before a device can serve a model; each includes those before it."""

    NOTHING = 0
    LEAVING = 1
    """Engines that are on their way out are gone."""
    IDLE = 2
    """Engines without requests are stopped."""
    BUSY = 3
    """Engines with requests are drained."""
    PINNED = 4
    """Engines are stopped that their owner wants to keep."""
    NEVER = 5


# Members of an enum are looked up slowly, and there are thousands of residents.
_NOTHING, _LEAVING, _IDLE, _BUSY, _PINNED, _NEVER = (int(tie) for tie in Tie)


class DeviceState:
    """A device with its residents."""

    __slots__ = (
        "free_bytes", "hardest", "hardest_exclusive", "held_bytes", "neighbours", "residents",
        "room", "span",
    )  # fmt: skip

    def __init__(self, room: DeviceRoom) -> None:
        self.room = room
        self.residents: list[tuple[int, Resident]] = []
        """With the tie of each."""
        self.held_bytes = [0] * _NEVER
        """By the tie of those who hold it."""
        self.free_bytes: list[int] = []
        """Once all residents up to a tie are gone."""
        self.hardest = _NOTHING
        """The tie of all residents."""
        self.hardest_exclusive = _NOTHING
        """Of those that share with nobody."""
        self.neighbours = 0
        """Residents that stay."""
        self.span = 1
        """On how many devices the widest resident is."""

    def tie(self, need_bytes: int, *, is_exclusive: bool) -> int:
        """What has to happen before so many bytes fit, and before nobody is there who minds."""
        if self.room.total_bytes >= need_bytes:
            blocked_by = self.hardest if is_exclusive else self.hardest_exclusive
            for tie in range(blocked_by, _NEVER):
                if self.free_bytes[tie] >= need_bytes:
                    return tie
        return _NEVER

    def most_bytes(self, *, is_exclusive: bool) -> int:
        """The most that a model can get here without what its owner wants to keep; or -1."""
        blocked_by = self.hardest if is_exclusive else self.hardest_exclusive
        if blocked_by > _BUSY or not self.room.is_usable:
            return -1
        return min(self.free_bytes[_BUSY], self.room.total_bytes)


class Occupancy:
    """All devices, lowest index first."""

    def __init__(self, rooms: Sequence[DeviceRoom], residents: Sequence[Resident]) -> None:
        ordered = sorted(rooms, key=lambda room: (room.index, room.id))
        self.states = [DeviceState(room) for room in ordered]
        self._most: dict[object, tuple[list[int], list[int]]] = {}
        by_id = {state.room.id: state for state in self.states}
        for resident in residents:
            tie = _tie_of(resident)
            span = len(resident.bytes_by_device)
            is_exclusive = resident.is_exclusive
            for device, size in resident.bytes_by_device.items():
                if device not in by_id:
                    continue
                state = by_id[device]
                state.residents.append((tie, resident))
                state.held_bytes[tie] += size
                if tie > state.hardest:
                    state.hardest = tie
                if tie > _LEAVING:
                    state.neighbours += 1
                if is_exclusive and tie > state.hardest_exclusive:
                    state.hardest_exclusive = tie
                if span > state.span:
                    state.span = span
        for state in self.states:
            free = state.room.free_bytes
            for held_bytes in state.held_bytes:
                free += held_bytes
                state.free_bytes.append(free)

    def fits(self, request: PlanRequest) -> bool:
        """Whether the model finds room once all that may go are gone.

        Devices are independent, so a group exists exactly if enough of them can serve.
        """
        where = (request.devices, request.avoid, request.is_exclusive)
        most = self._most.get(where)
        if most is None:
            most = self._most[where] = self._most_bytes(request)
        for option in request.options:
            sizes = most[option.tp_size > 1]
            if option.tp_size <= len(sizes) and sizes[option.tp_size - 1] >= option.need_bytes:
                return True
        return False

    def _most_bytes(self, request: PlanRequest) -> tuple[list[int], list[int]]:
        """What devices can give, most first: those for one rank, and those for one of several."""
        single, several = Option(1, 0), Option(2, 0)
        serving = [
            (state.most_bytes(is_exclusive=request.is_exclusive), state.room)
            for state in self.states
            if request.allows(state.room)
        ]
        serving.sort(key=lambda each: -each[0])
        return (
            [size for size, room in serving if single.allows(room)],
            [size for size, room in serving if several.allows(room)],
        )


def _tie_of(resident: Resident) -> int:
    """How hard it is to get it off."""
    if resident.is_leaving:
        return _LEAVING
    if resident.is_pinned:
        return _PINNED
    return _BUSY if resident.is_busy else _IDLE
