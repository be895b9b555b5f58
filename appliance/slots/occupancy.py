"""Who is on which device, and how hard it is to get them off. Pure; made once for a decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from appliance.slots.plans import DeviceRoom, PlanRequest, Resident


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


@dataclass(eq=False)
class DeviceState:
    """A device with its residents."""

    room: DeviceRoom
    residents: list[tuple[Tie, Resident]] = field(default_factory=list)
    held_bytes: list[int] = field(default_factory=lambda: [0] * Tie.NEVER)
    """By the tie of those who hold it."""
    hardest: Tie = Tie.NOTHING
    """Of all residents."""
    hardest_exclusive: Tie = Tie.NOTHING
    """Of those that share with nobody."""
    spans: bool = False
    """Whether a resident is on other devices too."""

    def add(self, resident: Resident, tie: Tie, held_bytes: int) -> None:
        """One more resident."""
        self.residents.append((tie, resident))
        self.held_bytes[tie] += held_bytes
        if tie > self.hardest:
            self.hardest = tie
        if resident.is_exclusive and tie > self.hardest_exclusive:
            self.hardest_exclusive = tie
        if len(resident.bytes_by_device) > 1:
            self.spans = True

    @property
    def neighbours(self) -> int:
        """Residents that stay."""
        return sum(tie > Tie.LEAVING for tie, _ in self.residents)

    def most_bytes(self, upto: Tie) -> int:
        """Free once all residents up to that tie are gone."""
        return self.room.free_bytes + sum(self.held_bytes[: upto + 1])

    def tie(self, need_bytes: int, *, is_exclusive: bool) -> Tie:
        """What has to happen before so many bytes fit, and before nobody is there who minds."""
        if self.room.total_bytes < need_bytes:
            return Tie.NEVER
        blocked_by = self.hardest if is_exclusive else self.hardest_exclusive
        free = self.room.free_bytes
        for tie in _STEPS:
            free += self.held_bytes[tie]
            if tie >= blocked_by and free >= need_bytes:
                return tie
        return Tie.NEVER


_STEPS = tuple(Tie)[: Tie.NEVER]


def tie_of(resident: Resident) -> Tie:
    """How hard it is to get it off."""
    if resident.is_leaving:
        return Tie.LEAVING
    if resident.is_pinned:
        return Tie.PINNED
    return Tie.BUSY if resident.is_busy else Tie.IDLE


class Occupancy:
    """All devices, lowest index first."""

    def __init__(self, rooms: Sequence[DeviceRoom], residents: Sequence[Resident]) -> None:
        ordered = sorted(rooms, key=lambda room: (room.index, room.id))
        self.states = [DeviceState(room) for room in ordered]
        self.residents = residents
        by_id = {state.room.id: state for state in self.states}
        for resident in residents:
            tie = tie_of(resident)
            for device, held_bytes in resident.bytes_by_device.items():
                state = by_id.get(device)
                if state is not None:
                    state.add(resident, tie, held_bytes)

    def fits(self, request: PlanRequest) -> bool:
        """Whether the model finds room once all that may go are gone.

        Devices are independent, so a group exists exactly if enough of them can serve.
        """
        allowed = [
            state for state in self.states if state.room.is_usable and request.allows(state.room)
        ]
        for option in request.options:
            serving = 0
            for state in allowed:
                if not option.allows(state.room):
                    continue
                tie = state.tie(option.need_bytes, is_exclusive=request.is_exclusive)
                serving += tie <= Tie.BUSY
                if serving == option.tp_size:
                    return True
        return False
