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
        "free_bytes", "hardest", "hardest_exclusive", "held_bytes", "neighbours", "position",
        "residents", "room", "span",
    )  # fmt: skip

    def __init__(self, room: DeviceRoom, position: int) -> None:
        self.room = room
        self.position = position
        """In the order of all devices."""
        self.residents: list[list[Resident]] = [[] for _ in range(_NEVER)]
        """By tie."""
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

    def mark(self, resident: Resident, tie: int) -> None:
        """Note one that is on other devices too, or shares with nobody."""
        span = len(resident.bytes_by_device)
        if span > self.span:
            self.span = span
        if resident.is_exclusive and tie > self.hardest_exclusive:
            self.hardest_exclusive = tie

    def settle(self) -> None:
        """Sum up, once all residents are there."""
        free = self.room.free_bytes
        for tie in range(_NEVER):
            free += self.held_bytes[tie]
            self.free_bytes.append(free)
            if self.residents[tie]:
                self.hardest = tie
        self.neighbours = sum(map(len, self.residents[_IDLE:]))

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
        self.states = [DeviceState(room, at) for at, room in enumerate(ordered)]
        self._most: dict[object, tuple[list[int], list[int]]] = {}
        by_id = {state.room.id: state for state in self.states}
        for resident in residents:
            if resident.is_leaving:
                tie = _LEAVING
            elif resident.is_pinned:
                tie = _PINNED
            else:
                tie = _BUSY if resident.is_busy else _IDLE
            held = resident.bytes_by_device
            for device, size in held.items():
                if device in by_id:
                    state = by_id[device]
                    state.residents[tie].append(resident)
                    state.held_bytes[tie] += size
            if resident.is_exclusive or len(held) > 1:
                for device in held:
                    if device in by_id:
                        by_id[device].mark(resident, tie)
        for state in self.states:
            state.settle()

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
