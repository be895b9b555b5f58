"""Who goes: the set of engines that costs least and makes enough room. Pure.

On one device this is the knapsack problem in its covering form: branch and bound over the engines,
cheapest per byte first, with the fractional solution as the bound (Martello and Toth, Knapsack
Problems, 1990, chapter 2). Engines that span devices of a group are decided first; after that the
devices are independent. Exact in cost and number within a budget of steps; beyond it the best set
found so far counts. Of sets that are equal in both one of those used least recently is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.slots.groups import Group
from appliance.slots.knapsack import (
    COST,
    COUNT_BITS,
    ENGINE,
    RESIDENT,
    WEIGHT,
    Budget,
    Item,
    Knapsack,
    good_set,
    least_weight,
)
from appliance.slots.occupancy import DeviceState, Occupancy, Tie
from appliance.slots.plans import Resident

_MICRO = 1_000_000
# The most that an engine counts for, a year of waiting; one that its owner keeps counts for more.
_MOST_COST_S = 3e7
_PINNED_COST_S = 1e9
# On many devices a decision has no time to be exact.
_FEW_DEVICES = 8
_STEPS_FOR_FEW = 5000
_STEPS_FOR_MANY = 250
_STEPS_OF_A_GROUP = 15
_STEPS_OF_A_KNAPSACK = 5
# 2 ** 10 sets of engines that span devices.
_MOST_SPANNING = 10
_LEAVING, _IDLE = int(Tie.LEAVING), int(Tie.IDLE)


@dataclass(frozen=True)
class Victims:
    """A set that suffices."""

    weight: int
    """Orders sets by cost, then by number."""
    residents: tuple[Resident, ...]

    @property
    def cost_s(self) -> float:
        """Seconds of waiting that their loss is expected to cause."""
        return cost_s(self.weight)

    def newest_first(self) -> list[tuple[float, str]]:
        """Orders equal sets: the one goes whose newest was used less recently."""
        used = [(each.last_used, each.engine_id) for each in self.residents]
        return sorted(used, reverse=True)


def cost_s(weight: int) -> float:
    """What a set of that weight is expected to cost, in seconds of waiting."""
    return (weight >> COUNT_BITS) / _MICRO


class Candidates:
    """All residents up to a tie, by device; for all options of a model."""

    def __init__(self, occupancy: Occupancy, upto: Tie) -> None:
        self._upto = int(upto)
        self._items: dict[str, list[Item]] = {}
        is_few = len(occupancy.states) <= _FEW_DEVICES
        self.budget = Budget(_STEPS_FOR_FEW if is_few else _STEPS_FOR_MANY)

    @property
    def is_time_over(self) -> bool:
        """Whether what was found so far has to do."""
        return self.budget.steps <= 0

    def items(self, state: DeviceState) -> list[Item]:
        """Those on a device, cheapest per byte first."""
        device = state.room.id
        items = self._items.get(device)
        if items is None:
            items = self._items[device] = [
                (weight / size, each.last_used, each.engine_id, size, weight, each)
                for there in state.residents[_IDLE : self._upto + 1]
                for each in there
                if (size := each.bytes_by_device[device]) > 0 and (weight := _weight(each))
            ]
            items.sort()
        return items

    def last_used(self, state: DeviceState) -> float:
        """When the cheapest engine there was used; 0 if nobody is there."""
        items = self.items(state)
        return items[0][1] if items else 0.0


class VictimSearch:
    """Finds victims for a model that needs so many bytes on each device."""

    def __init__(
        self,
        candidates: Candidates,
        states: Sequence[DeviceState],
        *,
        need_bytes: int,
        is_exclusive: bool,
    ) -> None:
        self._candidates = candidates
        self._need_bytes = need_bytes
        self._is_exclusive = is_exclusive
        self.least = {state.position: self._least_on(state) for state in states}
        """By position: no set for that device weighs less."""
        self._widest = max(state.span for state in states)

    def least_weight(self, group: Group) -> int:
        """No set for this group weighs less; found quickly."""
        bounds = [self.least[state.position] for state in group]
        if sum(state.span > 1 for state in group) <= 1:
            return sum(bounds)
        # An engine counts on no more devices than it is on.
        return max(*bounds, sum(bounds) // max(state.span for state in group))

    def least_of_any(self, size: int) -> int:
        """The same for all groups of that size."""
        bounds = sorted(self.least.values())[:size]
        return max(bounds[-1], sum(bounds) // self._widest)

    def last_used(self, group: Group) -> float:
        """When the cheapest engines of the group were used; of equal groups the first is tried."""
        return max(self._candidates.last_used(state) for state in group)

    def best(self, group: Group) -> Victims:
        """The set that costs least."""
        self._candidates.budget.spend(_STEPS_OF_A_GROUP)
        required = self._required(group)
        short = {
            state.room.id: shortage
            for state in group
            if (shortage := self._shortage(state, required)) > 0
        }
        items = {
            state.room.id: self._without(self._candidates.items(state), required)
            for state in group
            if state.room.id in short
        }
        spanning = {
            item[ENGINE]: item
            for state in group
            if state.span > 1 and len(short) > 1
            for item in items.get(state.room.id, ())
            if len(short.keys() & item[RESIDENT].bytes_by_device.keys()) > 1
        }
        quick = _quick(items, short, required)
        if len(spanning) > _MOST_SPANNING:
            return quick
        apart = {
            device: [item for item in there if item[ENGINE] not in spanning]
            for device, there in items.items()
        }
        cover = _Cover(sorted(spanning.values()), apart, quick, self._candidates.budget)
        start = sum(_weight(each) for each in required.values())
        cover.search(0, short, start, tuple(required.values()))
        return cover.best

    def _least_on(self, state: DeviceState) -> int:
        required = self._required((state,))
        shortage = self._shortage(state, required)
        if not required:
            return least_weight(self._candidates.items(state), shortage) if shortage > 0 else 0
        weight = sum(_weight(each) for each in required.values())
        if shortage > 0:
            items = self._without(self._candidates.items(state), required)
            weight += least_weight(items, shortage)
        return weight

    def _required(self, group: Group) -> dict[str, Resident]:
        """Those who have to go, however much is free: for who shares with nobody."""
        if not self._is_exclusive:
            for state in group:
                if state.hardest_exclusive > _LEAVING:
                    break
            else:
                return {}
        return {
            each.engine_id: each
            for state in group
            if self._is_exclusive or state.hardest_exclusive > _LEAVING
            for there in state.residents[_IDLE:]
            for each in there
            if self._is_exclusive or each.is_exclusive
        }

    def _shortage(self, state: DeviceState, gone: Mapping[str, Resident]) -> int:
        shortage = self._need_bytes - state.free_bytes[_LEAVING]
        if gone:
            device = state.room.id
            shortage -= sum(each.bytes_by_device.get(device, 0) for each in gone.values())
        return shortage

    @staticmethod
    def _without(items: list[Item], gone: Mapping[str, Resident]) -> list[Item]:
        return [item for item in items if item[ENGINE] not in gone] if gone else items


@dataclass
class _Cover:
    """Branches over the engines that span devices; the rest is one knapsack for each device."""

    spanning: Sequence[Item]
    apart: Mapping[str, list[Item]]
    best: Victims
    budget: Budget

    def search(
        self, index: int, short: Mapping[str, int], weight: int, chosen: tuple[Resident, ...]
    ) -> None:
        """Improve on `best`; `short` are the bytes that lack on each device."""
        if weight >= self.best.weight:
            return
        if index == len(self.spanning):
            self._finish(short, weight, chosen)
            return
        if not self.budget.spend():
            return
        item = self.spanning[index]
        held = item[RESIDENT].bytes_by_device
        less = {device: shortage - held.get(device, 0) for device, shortage in short.items()}
        self.search(index + 1, less, weight + item[WEIGHT], (*chosen, item[RESIDENT]))
        self.search(index + 1, short, weight, chosen)

    def _finish(self, short: Mapping[str, int], weight: int, chosen: tuple[Resident, ...]) -> None:
        for device, shortage in short.items():
            if shortage <= 0:
                continue
            self.budget.spend(_STEPS_OF_A_KNAPSACK)
            knapsack = Knapsack(self.apart[device], self.best.weight - weight, self.budget)
            knapsack.solve(shortage)
            if knapsack.best is None:
                return
            weight += sum(item[WEIGHT] for item in knapsack.best)
            chosen += tuple(item[RESIDENT] for item in knapsack.best)
        if weight < self.best.weight:
            self.best = Victims(weight, chosen)


def _weight(resident: Resident) -> int:
    cost_s = resident.cost_s
    if not 0.0 <= cost_s <= _MOST_COST_S:
        cost_s = 0.0 if cost_s < 0.0 else _MOST_COST_S
    if resident.is_pinned:
        cost_s += _PINNED_COST_S
    return int(cost_s * _MICRO) * COST + 1


def _quick(
    items: Mapping[str, list[Item]], short: Mapping[str, int], required: Mapping[str, Resident]
) -> Victims:
    """What is good on each device; nobody of them can be spared."""
    chosen = dict(required)
    left = dict(short)
    for device, there in items.items():
        rest = [item for item in there if item[ENGINE] not in chosen]
        if left[device] > 0:
            for item in good_set(rest, left[device]):
                resident = item[RESIDENT]
                chosen[item[ENGINE]] = resident
                for other in left:
                    left[other] -= resident.bytes_by_device.get(other, 0)
    for each in sorted(chosen.values(), key=lambda one: (-_weight(one), -one.last_used)):
        held = each.bytes_by_device
        if each.engine_id not in required and all(
            held.get(device, 0) <= -shortage for device, shortage in left.items()
        ):
            del chosen[each.engine_id]
            for device in left:
                left[device] += held.get(device, 0)
    return Victims(sum(_weight(each) for each in chosen.values()), tuple(chosen.values()))
