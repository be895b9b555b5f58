"""Who goes: the set of engines that costs least and makes enough room. Pure.

On one device this is the knapsack problem in its covering form: branch and bound over the engines,
cheapest per byte first, with the fractional solution as the bound (Martello and Toth, Knapsack
Problems, 1990, chapter 2). Engines that span devices of a group are decided first; after that the
devices are independent. Exact in cost and number within a budget of steps; beyond it the best set
found so far counts. Of sets that are equal in both one of those used least recently is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.slots.groups import Group
from appliance.slots.occupancy import DeviceState, Occupancy, Tie
from appliance.slots.plans import Resident

_MICRO = 1_000_000
# The most that an engine counts for, a year of waiting; one that its owner keeps counts for more.
_MOST_COST_S = 3e7
_PINNED_COST_S = 1e9
# One microsecond weighs more than any number of engines.
_COUNT_BITS = 24
_COST = 1 << _COUNT_BITS
# A float holds 53; some are for the sums.
_ROUNDING_BITS = 38
# On many devices a decision has no time to be exact.
_FEW_DEVICES = 8
_STEPS_FOR_FEW = 5000
_STEPS_FOR_MANY = 250
_STEPS_OF_A_GROUP = 15
_STEPS_OF_A_KNAPSACK = 5
# 2 ** 10 sets of engines that span devices.
_MOST_SPANNING = 10
_LEAVING, _IDLE = int(Tie.LEAVING), int(Tie.IDLE)

# Cost per byte, last use, engine, size, weight, resident; sorts the cheapest first.
_Item = tuple[float, float, str, int, int, Resident]
_ENGINE: Final = 2
_SIZE: Final = 3
_WEIGHT: Final = 4
_RESIDENT: Final = 5


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
    return (weight >> _COUNT_BITS) / _MICRO


class Candidates:
    """All residents up to a tie, by device; for all options of a model."""

    def __init__(self, occupancy: Occupancy, upto: Tie) -> None:
        self._upto = int(upto)
        self._items: dict[str, list[_Item]] = {}
        is_few = len(occupancy.states) <= _FEW_DEVICES
        self.budget = _Budget(_STEPS_FOR_FEW if is_few else _STEPS_FOR_MANY)

    @property
    def is_time_over(self) -> bool:
        """Whether what was found so far has to do."""
        return self.budget.steps <= 0

    def items(self, state: DeviceState) -> list[_Item]:
        """Those on a device, cheapest per byte first."""
        device = state.room.id
        items = self._items.get(device)
        if items is None:
            items = self._items[device] = []
            for tie, each in state.residents:
                size = each.bytes_by_device[device]
                if size > 0 and _IDLE <= tie <= self._upto:
                    weight = _weight(each)
                    items.append(
                        (weight / size, each.last_used, each.engine_id, size, weight, each)
                    )
            items.sort()
        return items


class VictimSearch:
    """Finds victims for a model that needs so many bytes on each device."""

    def __init__(self, candidates: Candidates, *, need_bytes: int, is_exclusive: bool) -> None:
        self._candidates = candidates
        self._need_bytes = need_bytes
        self._is_exclusive = is_exclusive
        self._least: dict[str, int] = {}

    def least_weight(self, group: Group) -> int:
        """No set for this group weighs less; found quickly."""
        if len(group) == 1:
            return self._least_on(group[0])
        bounds = [self._least_on(state) for state in group]
        if sum(state.span > 1 for state in group) <= 1:
            return sum(bounds)
        # An engine counts on no more devices than it is on.
        return max(*bounds, sum(bounds) // max(state.span for state in group))

    def least_of_any(self, states: Sequence[DeviceState], size: int) -> int:
        """The same for all groups of that size."""
        bounds = sorted(self._least_on(state) for state in states)[:size]
        return max(bounds[-1], sum(bounds) // max(state.span for state in states))

    def last_used(self, group: Group) -> float:
        """When the cheapest engines of the group were used; of equal groups the first is tried."""
        items = [self._candidates.items(state) for state in group]
        return max((there[0][1] for there in items if there), default=0.0)

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
            item[_ENGINE]: item
            for state in group
            if state.span > 1 and len(short) > 1
            for item in items.get(state.room.id, ())
            if len(short.keys() & item[_RESIDENT].bytes_by_device.keys()) > 1
        }
        quick = _quick(items, short, required)
        if len(spanning) > _MOST_SPANNING:
            return quick
        apart = {
            device: [item for item in there if item[_ENGINE] not in spanning]
            for device, there in items.items()
        }
        cover = _Cover(sorted(spanning.values()), apart, quick, self._candidates.budget)
        start = sum(_weight(each) for each in required.values())
        cover.search(0, short, start, tuple(required.values()))
        return cover.best

    def _least_on(self, state: DeviceState) -> int:
        least = self._least.get(state.room.id)
        if least is None:
            required = self._required((state,))
            least = sum(_weight(each) for each in required.values())
            shortage = self._shortage(state, required)
            if shortage > 0:
                items = self._without(self._candidates.items(state), required)
                least += _least_weight(items, 0, shortage)
            self._least[state.room.id] = least
        return least

    def _required(self, group: Group) -> dict[str, Resident]:
        """Those who have to go, however much is free: for who shares with nobody."""
        if not self._is_exclusive and all(state.hardest_exclusive <= _LEAVING for state in group):
            return {}
        return {
            each.engine_id: each
            for state in group
            if self._is_exclusive or state.hardest_exclusive > _LEAVING
            for tie, each in state.residents
            if tie > _LEAVING and (self._is_exclusive or each.is_exclusive)
        }

    def _shortage(self, state: DeviceState, gone: Mapping[str, Resident]) -> int:
        shortage = self._need_bytes - state.free_bytes[_LEAVING]
        if gone:
            device = state.room.id
            shortage -= sum(each.bytes_by_device.get(device, 0) for each in gone.values())
        return shortage

    @staticmethod
    def _without(items: list[_Item], gone: Mapping[str, Resident]) -> list[_Item]:
        return [item for item in items if item[_ENGINE] not in gone] if gone else items


@dataclass
class _Budget:
    """Steps that are left to a decision."""

    steps: int

    def spend(self, steps: int = 1) -> bool:
        """Whether so many more may be done."""
        self.steps -= steps
        return self.steps >= 0


@dataclass
class _Cover:
    """Branches over the engines that span devices; the rest is one knapsack for each device."""

    spanning: Sequence[_Item]
    apart: Mapping[str, list[_Item]]
    best: Victims
    budget: _Budget

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
        held = item[_RESIDENT].bytes_by_device
        less = {device: shortage - held.get(device, 0) for device, shortage in short.items()}
        self.search(index + 1, less, weight + item[_WEIGHT], (*chosen, item[_RESIDENT]))
        self.search(index + 1, short, weight, chosen)

    def _finish(self, short: Mapping[str, int], weight: int, chosen: tuple[Resident, ...]) -> None:
        for device, shortage in short.items():
            if shortage <= 0:
                continue
            self.budget.spend(_STEPS_OF_A_KNAPSACK)
            knapsack = _Knapsack(self.apart[device], self.best.weight - weight, self.budget)
            knapsack.solve(shortage)
            if knapsack.best is None:
                return
            weight += sum(item[_WEIGHT] for item in knapsack.best)
            chosen += tuple(item[_RESIDENT] for item in knapsack.best)
        if weight < self.best.weight:
            self.best = Victims(weight, chosen)


class _Knapsack:
    """The least set that frees enough on one device; None if none weighs less than `ceiling`."""

    def __init__(self, items: list[_Item], ceiling: int, budget: _Budget) -> None:
        self._items = items
        self._ceiling = ceiling
        self._budget = budget
        self._rest: list[tuple[int, int]] = []
        """From each item on: bytes of all, and of the largest."""
        self.best: list[_Item] | None = None

    def solve(self, shortage: int) -> None:
        """Find it."""
        if sum(item[_SIZE] for item in self._items) < shortage:
            return
        self._take(_filled(self._items, shortage))
        if _least_weight(self._items, 0, shortage) >= self._ceiling:
            return
        total = largest = 0
        self._rest.append((0, 0))
        for item in reversed(self._items):
            total, largest = total + item[_SIZE], max(largest, item[_SIZE])
            self._rest.append((total, largest))
        self._rest.reverse()
        self._branch(0, shortage, 0, [])

    def _take(self, items: list[_Item]) -> None:
        weight = sum(item[_WEIGHT] for item in items)
        if weight < self._ceiling:
            self._ceiling = weight
            self.best = list(items)

    def _branch(self, index: int, left: int, weight: int, chosen: list[_Item]) -> None:
        if left <= 0:
            self._take(chosen)
            return
        size, largest = self._rest[index]
        if size < left or not self._budget.spend():
            return
        if weight - (-left // largest) >= self._ceiling:
            return
        if weight + _least_weight(self._items, index, left) >= self._ceiling:
            return
        item = self._items[index]
        chosen.append(item)
        self._branch(index + 1, left - item[_SIZE], weight + item[_WEIGHT], chosen)
        chosen.pop()
        self._branch(index + 1, left, weight, chosen)


def _weight(resident: Resident) -> int:
    cost_s = resident.cost_s
    if not 0.0 <= cost_s <= _MOST_COST_S:
        cost_s = 0.0 if cost_s < 0.0 else _MOST_COST_S
    if resident.is_pinned:
        cost_s += _PINNED_COST_S
    return int(cost_s * _MICRO) * _COST + 1


def _least_weight(items: Sequence[_Item], start: int, shortage: int) -> int:
    """The weight of the fractional solution, less than what floats may add to it."""
    weight = 0
    for index in range(start, len(items)):
        item = items[index]
        size = item[_SIZE]
        if size >= shortage:
            part = int(item[0] * shortage)
            weight += item[_WEIGHT] if part > item[_WEIGHT] else part or 1
            break
        weight += item[_WEIGHT]
        shortage -= size
    return weight - (weight >> _ROUNDING_BITS)


def _filled(items: Sequence[_Item], shortage: int) -> list[_Item]:
    """A good set for one device: by cost per byte, or a single one, or few of them."""
    chosen = []
    left = shortage
    for item in items:
        if left <= 0:
            break
        chosen.append(item)
        left -= item[_SIZE]
    for item in sorted(chosen, key=lambda each: -each[_WEIGHT]):
        if item[_SIZE] <= -left:
            chosen.remove(item)
            left += item[_SIZE]
    alone = [(item[_WEIGHT], item[1:3], item) for item in items if item[_SIZE] >= shortage]
    others = [[min(alone)[2]]] if alone else []
    if len(chosen) > 1 and not alone and all(item[_WEIGHT] < _COST for item in chosen):
        others.append(_fewest(items, shortage))
    return min([chosen, *others], key=lambda each: sum(item[_WEIGHT] for item in each))


def _fewest(items: Sequence[_Item], shortage: int) -> list[_Item]:
    """No more than needed at least; of those the first, as long as the largest could follow."""
    rest = sorted((item[_SIZE] for item in items), reverse=True)
    count = covered = 0
    while covered < shortage:
        covered += rest[count]
        count += 1
    chosen: list[_Item] = []
    left = shortage
    for item in items:
        size = item[_SIZE]
        rest.remove(size)
        if sum(rest[: count - len(chosen) - 1]) >= left - size:
            chosen.append(item)
            left -= size
            if left <= 0:
                break
    return chosen


def _quick(
    items: Mapping[str, list[_Item]], short: Mapping[str, int], required: Mapping[str, Resident]
) -> Victims:
    """What is good on each device; nobody of them can be spared."""
    chosen = dict(required)
    left = dict(short)
    for device, there in items.items():
        rest = [item for item in there if item[_ENGINE] not in chosen]
        if left[device] > 0:
            for item in _filled(rest, left[device]):
                resident = item[_RESIDENT]
                chosen[item[_ENGINE]] = resident
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
