"""Which devices an engine gets, and who has to go for it. Pure.

Never over-commits; never picks a busy, starting or pinned engine as a victim; finds a placement if
there is one: a group exists exactly if enough devices can serve. Prefers no eviction, then the
victims whose loss is expected to cost least, then devices that are close to each other, then what
leaves room for later groups.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from appliance.slots.groups import Group, Islands, candidate_groups, distance
from appliance.slots.occupancy import DeviceState, Occupancy, Tie
from appliance.slots.plans import (
    DeviceRoom,
    Evict,
    Option,
    Place,
    Plan,
    PlanRequest,
    Resident,
    Wait,
)
from appliance.slots.refusal import refuse
from appliance.slots.victims import VictimSearch


def plan(rooms: Sequence[DeviceRoom], residents: Sequence[Resident], request: PlanRequest) -> Plan:
    """Decide. The same answer in whatever order devices and engines come."""
    occupancy = Occupancy(rooms, residents)
    search = _Search(occupancy, request)
    return (
        search.place()
        or search.wait_for_leaving()
        or search.evict()
        or search.wait_for_busy()
        or search.wait_for_device()
        or refuse(occupancy, request, in_the_way=search.in_the_way())
    )


_Rank = tuple[bool, int, tuple[int, int], int, list[int]]


@dataclass(frozen=True)
class _Choice:
    """A group, and who has to go there."""

    is_starting: bool
    cost_s: float
    victims: tuple[Resident, ...]
    group: Group


class _Search:
    """One answer after the other, each over all options."""

    def __init__(self, occupancy: Occupancy, request: PlanRequest) -> None:
        self._occupancy = occupancy
        self._request = request
        allowed = [state for state in occupancy.states if request.allows(state.room)]
        self._broken = [state for state in allowed if not state.room.is_usable]
        self._ties = {
            option: [
                (state.tie(option.need_bytes, is_exclusive=request.is_exclusive), state)
                for state in allowed
                if state.room.is_usable and option.allows(state.room)
            ]
            for option in request.options
        }
        self._islands: Islands | None = None

    def place(self) -> Plan | None:
        """Room as it is; where an engine starts, the next one waits."""
        starting: Group | None = None
        for option in self._request.options:
            ready = self._upto(option, Tie.NOTHING)
            free = [state for state in ready if not state.room.is_starting]
            if len(free) >= option.tp_size:
                return Place(_rooms(self._roomiest(free, option)))
            if starting is None and len(ready) >= option.tp_size:
                starting = self._roomiest(ready, option)
        if starting is None:
            return None
        return Wait("waits until another model has started", (), _rooms(starting))

    def wait_for_leaving(self) -> Plan | None:
        """Memory that comes back by itself."""
        for option in self._request.options:
            states = self._upto(option, Tie.LEAVING)
            if len(states) < option.tp_size:
                continue
            group = self._roomiest(states, option)
            there = _residents(group, lambda tie: tie is Tie.LEAVING)
            busy = [resident for resident in there if resident.is_busy]
            reason = f"waits until {_names(there)} has given its memory back"
            if busy:
                reason = f"waits for the last requests of {_names(busy)}"
            return Wait(reason, there, _rooms(group))
        return None

    def evict(self) -> Plan | None:
        """Stop engines that have nothing to do."""
        found = self._cheapest(Tie.IDLE)
        return None if found is None else Evict(_in_order(found.victims), _rooms(found.group))

    def wait_for_busy(self) -> Plan | None:
        """Engines that will have nothing to do."""
        found = self._cheapest(Tie.BUSY)
        if found is None:
            return None
        busy = _in_order([each for each in found.victims if each.is_busy])
        return Wait(f"waits for the requests of {_names(busy)}", busy, _rooms(found.group))

    def wait_for_device(self) -> Plan | None:
        """Devices that cannot be used now may come back; what is on them is not known."""
        for option in self._request.options:
            broken = [
                state
                for state in self._broken
                if option.allows(state.room) and _may_be_large_enough(state.room, option)
            ]
            states = self._upto(option, Tie.BUSY)
            missing = option.tp_size - len(states)
            if 0 < missing <= len(broken):
                group = (*states, *broken[:missing])
                names = ", ".join(str(state.room.index) for state in broken[:missing])
                return Wait(f"waits until device {names} can be used again", (), _rooms(group))
        return None

    def in_the_way(self) -> tuple[Resident, ...]:
        """The fewest engines whose owner keeps them and without which it would fit."""
        found = self._cheapest(Tie.PINNED)
        victims = () if found is None else found.victims
        return _in_order([each for each in victims if each.is_pinned])

    def _upto(self, option: Option, most: Tie) -> list[DeviceState]:
        return [state for tie, state in self._ties[option] if tie <= most]

    def _roomiest(self, states: Sequence[DeviceState], option: Option) -> Group:
        """The closest group that spares later ones, with the fewest neighbours, the tightest."""
        if self._islands is None:
            self._islands = Islands(self._occupancy.states)
        islands = self._islands

        def rank(group: Group) -> tuple[object, ...]:
            return (
                distance(group),
                islands.loss(group),
                sum(state.neighbours for state in group),
                sum(state.room.free_bytes for state in group),
                _indices(group),
            )

        return min(candidate_groups(states, option.tp_size, lambda _: 0), key=rank)

    def _cheapest(self, upto: Tie) -> _Choice | None:
        """Over all options: the one that costs least, then the one that is preferred."""
        choices = [
            self._cheapest_of(option, states, upto)
            for option in self._request.options
            if len(states := self._upto(option, upto)) >= option.tp_size
        ]
        return min(choices, key=lambda each: (each.is_starting, each.cost_s), default=None)

    def _cheapest_of(self, option: Option, states: Sequence[DeviceState], upto: Tie) -> _Choice:
        """The group that costs least; within a second of waiting the one that is closest."""
        search = VictimSearch(
            self._occupancy,
            upto,
            need_bytes=option.need_bytes,
            is_exclusive=self._request.is_exclusive,
        )

        def order(state: DeviceState) -> tuple[bool, int]:
            return (state.room.is_starting, int(search.least_cost_s((state,))))

        def at_least(group: Group) -> tuple[bool, int, tuple[int, int], list[int]]:
            least_s = int(search.least_cost_s(group))
            return (_is_starting(group), least_s, distance(group), _indices(group))

        bounds = {
            group: at_least(group) for group in candidate_groups(states, option.tp_size, order)
        }
        best: tuple[_Rank, _Choice] | None = None
        for group, (is_starting, least_s, far, indices) in sorted(
            bounds.items(), key=lambda each: each[1]
        ):
            if best is not None and (is_starting, least_s) > best[0][:2]:
                break
            victims = search.best(group)
            cost_s = search.cost_s(victims)
            rank = (is_starting, int(cost_s), far, victims.weight, indices)
            if best is None or rank < best[0]:
                best = (rank, _Choice(is_starting, cost_s, victims.residents, group))
        assert best is not None
        return best[1]


def _may_be_large_enough(room: DeviceRoom, option: Option) -> bool:
    """A device that has never answered has an unknown size."""
    return room.total_bytes == 0 or room.total_bytes >= option.need_bytes


def _rooms(group: Group) -> tuple[DeviceRoom, ...]:
    return tuple(state.room for state in group)


def _indices(group: Group) -> list[int]:
    return [state.room.index for state in group]


def _is_starting(group: Group) -> bool:
    return any(state.room.is_starting for state in group)


def _residents(group: Group, keep: Callable[[Tie], bool]) -> tuple[Resident, ...]:
    there = {each.engine_id: each for state in group for tie, each in state.residents if keep(tie)}
    return _in_order(there.values())


def _in_order(residents: Iterable[Resident]) -> tuple[Resident, ...]:
    return tuple(sorted(residents, key=lambda each: (each.last_used, each.engine_id)))


def _names(residents: Sequence[Resident]) -> str:
    return ", ".join(sorted({resident.model for resident in residents})) or "another model"
