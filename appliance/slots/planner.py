"""Which devices an engine gets, and who has to go for it. Pure.

Never over-commits; never picks a busy, starting or pinned engine as a victim; finds a placement if
there is one: a group exists exactly if enough devices can serve. Prefers no eviction, then the
victims whose loss is expected to cost least, then devices that are close to each other, then what
leaves room for later groups.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from appliance.slots.groups import Group, Islands, distance
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
from appliance.slots.victims import Candidates, Victims, VictimSearch, cost_s


def plan(rooms: Sequence[DeviceRoom], residents: Sequence[Resident], request: PlanRequest) -> Plan:
    """Decide. The same answer in whatever order devices and engines come.

    An engine of the model itself, which sleeps, is in nobody's way.
    """
    others = [each for each in residents if each.is_leaving or each.model != request.model]
    occupancy = Occupancy(rooms, others)
    search = _Search(occupancy, request)
    return (
        search.place()
        or search.wait_for_leaving()
        or search.evict()
        or search.wait_for_busy()
        or search.wait_for_device()
        or refuse(occupancy, request, in_the_way=search.in_the_way())
    )


_Rank = tuple[bool, int, tuple[int, int], int]


@dataclass(frozen=True)
class _Choice:
    """A group, and who has to go there."""

    is_starting: bool
    group: Group
    victims: Victims

    @property
    def cost(self) -> tuple[bool, float]:
        """What counts between options."""
        return (self.is_starting, self.victims.cost_s)


class _Way(NamedTuple):
    """An option on the devices that it may use."""

    option: Option
    ties: list[tuple[int, DeviceState]]
    """What has to happen on each."""
    hardest: int
    """What has to happen before there are enough of them."""


class _Search:
    """One answer after the other, each over all options."""

    def __init__(self, occupancy: Occupancy, request: PlanRequest) -> None:
        self._occupancy = occupancy
        self._request = request
        allowed = [state for state in occupancy.states if request.allows(state.room)]
        usable = [state for state in allowed if state.room.is_usable]
        self._broken = [state for state in allowed if not state.room.is_usable]
        self._islands = Islands(occupancy.states)
        self._ways = [
            _way(option, [state for state in usable if option.allows(state.room)], request)
            for option in request.options
        ]

    def place(self) -> Plan | None:
        """Room as it is; where an engine starts, the next one waits."""
        starting: Group | None = None
        for option, ready in self._serving(Tie.NOTHING):
            free = [
                state for state in ready if not (state.room.is_starting or state.room.is_freeing)
            ]
            if len(free) >= option.tp_size:
                return Place(_rooms(self._roomiest(free, option)))
            if starting is None:
                starting = self._roomiest(ready, option)
        if starting is None:
            return None
        freeing = [str(state.room.index) for state in starting if state.room.is_freeing]
        if freeing:
            reason = f"waits until device {', '.join(freeing)} has its memory back"
            return Wait(reason, (), _rooms(starting))
        return Wait("waits until another model has started", (), _rooms(starting))

    def wait_for_leaving(self) -> Plan | None:
        """Memory that comes back by itself."""
        for option, states in self._serving(Tie.LEAVING):
            group = self._roomiest(states, option)
            there = _in_order(each for state in group for each in state.residents[Tie.LEAVING])
            busy = [resident for resident in there if resident.is_busy]
            reason = f"waits until {_names(there)} has given its memory back"
            if busy:
                reason = f"waits for the last requests of {_names(busy)}"
            return Wait(reason, there, _rooms(group))
        return None

    def evict(self) -> Plan | None:
        """Stop engines that have nothing to do."""
        found = self._cheapest(Tie.IDLE)
        if found is None:
            return None
        return Evict(_in_order(found.victims.residents), _rooms(found.group))

    def wait_for_busy(self) -> Plan | None:
        """Engines that will have nothing to do."""
        found = self._cheapest(Tie.BUSY)
        if found is None:
            return None
        busy = _in_order(each for each in found.victims.residents if each.is_busy)
        return Wait(f"waits for the requests of {_names(busy)}", busy, _rooms(found.group))

    def wait_for_device(self) -> Plan | None:
        """Devices that cannot be used now may come back; what is on them is not known."""
        for option, ties, _ in self._ways:
            broken = [
                state
                for state in self._broken
                if option.allows(state.room) and _may_be_large_enough(state.room, option)
            ]
            states = [state for tie, state in ties if tie <= Tie.BUSY]
            missing = option.tp_size - len(states)
            if missing <= len(broken):
                group = (*states, *broken[:missing])
                names = ", ".join(str(state.room.index) for state in broken[:missing])
                return Wait(f"waits until device {names} can be used again", (), _rooms(group))
        return None

    def in_the_way(self) -> tuple[Resident, ...]:
        """The engines whose owner keeps them and without which it would fit."""
        found = self._cheapest(Tie.PINNED)
        victims = () if found is None else found.victims.residents
        return _in_order(each for each in victims if each.is_pinned)

    def _serving(self, upto: Tie) -> list[tuple[Option, list[DeviceState]]]:
        """The options for which enough devices can serve."""
        return [
            (option, [state for tie, state in ties if tie <= upto])
            for option, ties, hardest in self._ways
            if hardest <= upto
        ]

    def _roomiest(self, states: Sequence[DeviceState], option: Option) -> Group:
        """The closest group that spares later ones, with the fewest neighbours, the tightest."""

        def order(state: DeviceState) -> tuple[object, ...]:
            return (self._islands.loss((state,)), state.neighbours, state.room.free_bytes)

        def rank(group: Group) -> tuple[tuple[int, int], list[int], int, int, list[int]]:
            return (
                distance(group),
                self._islands.loss(group),
                sum(state.neighbours for state in group),
                sum(state.room.free_bytes for state in group),
                _indices(group),
            )

        groups = dict.fromkeys(self._islands.groups(states, option.tp_size, order))
        return min(groups, key=rank)

    def _cheapest(self, upto: Tie) -> _Choice | None:
        """Over all options: the one that costs least, then the one that is preferred."""
        serving = self._serving(upto)
        if not serving:
            return None
        candidates = Candidates(self._occupancy, upto)
        best: _Choice | None = None
        for option, states in serving:
            choice = self._cheapest_of(option, states, candidates, best)
            if best is None or choice is not None:
                best = choice
        return best

    def _cheapest_of(
        self,
        option: Option,
        states: Sequence[DeviceState],
        candidates: Candidates,
        preferred: _Choice | None,
    ) -> _Choice | None:
        """The group that costs least; within a second of waiting the one that is closest.

        None if it does not cost less than what is preferred.
        """
        search = VictimSearch(
            candidates,
            states,
            need_bytes=option.need_bytes,
            is_exclusive=self._request.is_exclusive,
        )
        if preferred is not None:
            least = search.least_of_any(option.tp_size)
            if (False, cost_s(least)) >= preferred.cost:
                return None

        def order(state: DeviceState) -> tuple[object, ...]:
            return (state.room.is_starting, search.least[state.position])

        def rank(group: Group, weight: int) -> _Rank:
            return (_is_starting(group), int(cost_s(weight)), distance(group), weight)

        groups = list(self._islands.groups(states, option.tp_size, order))
        bounds = {
            group: (
                rank(group, search.least_weight(group)),
                search.last_used(group),
                _indices(group),
            )
            for group in dict.fromkeys(groups)
        }
        groups.sort(key=bounds.__getitem__)
        best: tuple[_Rank, list[tuple[float, str]], list[int]] | None = None
        choice: _Choice | None = None
        for group in groups:
            bound = bounds[group][0]
            is_least = best is not None and bound > best[0]
            if is_least or (choice is not None and candidates.is_time_over):
                break
            if preferred is not None and (bound[0], cost_s(bound[3])) >= preferred.cost:
                continue
            victims = search.best(group)
            found = (rank(group, victims.weight), victims.newest_first(), _indices(group))
            if best is None or found < best:
                best, choice = found, _Choice(bound[0], group, victims)
        is_cheaper = choice is not None and (preferred is None or choice.cost < preferred.cost)
        return choice if is_cheaper else None


def _way(option: Option, states: Sequence[DeviceState], request: PlanRequest) -> _Way:
    need_bytes, is_exclusive = option.need_bytes, request.is_exclusive
    ties = [(state.tie(need_bytes, is_exclusive=is_exclusive), state) for state in states]
    if len(ties) < option.tp_size:
        return _Way(option, ties, int(Tie.NEVER))
    return _Way(option, ties, sorted(tie for tie, _ in ties)[option.tp_size - 1])


def _may_be_large_enough(room: DeviceRoom, option: Option) -> bool:
    """A device that has never answered has an unknown size."""
    return room.total_bytes == 0 or room.total_bytes >= option.need_bytes


def _rooms(group: Group) -> tuple[DeviceRoom, ...]:
    return tuple(state.room for state in group)


def _indices(group: Group) -> list[int]:
    return [state.room.index for state in group]


def _is_starting(group: Group) -> bool:
    return any(state.room.is_starting for state in group)


def _in_order(residents: Iterable[Resident]) -> tuple[Resident, ...]:
    """Each once, the least recently used one first."""
    by_id = {each.engine_id: each for each in residents}
    return tuple(sorted(by_id.values(), key=lambda each: (each.last_used, each.engine_id)))


def _names(residents: Sequence[Resident]) -> str:
    return ", ".join(sorted({resident.model for resident in residents})) or "another model"
