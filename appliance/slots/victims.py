"""Who goes: the set of engines that costs least and makes enough room. Pure.

On one device this is the knapsack problem in its covering form: branch and bound over the engines,
cheapest per byte first, with the fractional solution as the bound (Martello and Toth, Knapsack
Problems, 1990, chapter 2). Engines that span devices of a group are decided first; after that the
devices are independent. Exact within a budget of steps; beyond it the best set found so far counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from appliance.slots.groups import Group
from appliance.slots.occupancy import DeviceState, Occupancy, Tie, tie_of
from appliance.slots.plans import Resident

_MICRO = 1_000_000
# The most that an engine counts for, a year of waiting; one that its owner keeps counts for more.
_MOST_COST_S = 3e7
_PINNED_COST_S = 1e9
_STEPS = 2000
# 2 ** 10 sets of engines that span devices.
_MOST_SPANNING = 10
_COUNT_BITS = 24


@dataclass(frozen=True)
class Victims:
    """A set that suffices; `weight` orders sets by cost, then number, then who was used last."""

    weight: int
    residents: tuple[Resident, ...]


class _Item(NamedTuple):
    """A resident of a device; `weight` is different for each, so they sort without ties."""

    micros_per_byte: float
    weight: int
    size: int
    micros: int
    resident: Resident


class VictimSearch:
    """Finds victims among the residents up to a tie, for a model that needs so many bytes."""

    def __init__(
        self, occupancy: Occupancy, upto: Tie, *, need_bytes: int, is_exclusive: bool
    ) -> None:
        self._upto = upto
        self._need_bytes = need_bytes
        self._is_exclusive = is_exclusive
        may_go = [each for each in occupancy.residents if Tie.IDLE <= tie_of(each) <= upto]
        may_go.sort(key=lambda each: (each.last_used, each.engine_id))
        self._scale = _Scale(len(may_go), len(may_go) + _COUNT_BITS)
        self._weights = {
            each.engine_id: self._scale.weight(_micros(each), rank)
            for rank, each in enumerate(may_go)
        }
        self._items: dict[str, list[_Item]] = {}
        self._greedy: dict[str, tuple[int, list[Resident]]] = {}
        self._budget = _Budget(_STEPS)

    def cost_s(self, victims: Victims) -> float:
        """Seconds of waiting that their loss is expected to cause."""
        return self._scale.micros(victims.weight) / _MICRO

    def least_cost_s(self, group: Group) -> float:
        """No set for this group costs less; found quickly."""
        bounds = [self._on_device(state)[0] for state in group]
        is_apart = sum(state.spans for state in group) <= 1
        return (sum(bounds) if is_apart else max(bounds)) / _MICRO

    def best(self, group: Group) -> Victims:
        """The set that costs least."""
        quick = self._quick(group)
        required = self._required(group)
        short = {
            state.room.id: shortage
            for state in group
            if (shortage := self._shortage(state, required)) > 0
        }
        spanning: dict[str, _Item] = {}
        apart: dict[str, list[_Item]] = {}
        for state in group:
            if state.room.id not in short:
                continue
            apart[state.room.id] = []
            for item in self._items_of(state):
                engine = item.resident
                if engine.engine_id in required:
                    continue
                if state.spans and len(short.keys() & engine.bytes_by_device.keys()) > 1:
                    spanning[engine.engine_id] = item
                else:
                    apart[state.room.id].append(item)
        if len(spanning) > _MOST_SPANNING:
            return quick
        cover = _Cover(sorted(spanning.values()), apart, quick, self._scale, self._budget)
        start = sum(self._weights[engine_id] for engine_id in required)
        cover.search(0, short, start, tuple(required.values()))
        return cover.best

    def _quick(self, group: Group) -> Victims:
        """What is best on each device; nobody of them can be spared."""
        chosen = {each.engine_id: each for state in group for each in self._on_device(state)[1]}
        required = self._required(group)
        for each in sorted(chosen.values(), key=lambda one: -self._weights[one.engine_id]):
            if each.engine_id in required:
                continue
            without = {name: one for name, one in chosen.items() if one is not each}
            if all(self._shortage(state, without) <= 0 for state in group):
                chosen = without
        weight = sum(self._weights[engine_id] for engine_id in chosen)
        return Victims(weight, tuple(chosen.values()))

    def _on_device(self, state: DeviceState) -> tuple[int, list[Resident]]:
        """A bound of the cost in microseconds, and a set that suffices there."""
        found = self._greedy.get(state.room.id)
        if found is None:
            required = self._required((state,))
            shortage = self._shortage(state, required)
            items = self._items_of(state)
            if required:
                items = [item for item in items if item.resident.engine_id not in required]
            bound = sum(_micros(each) for each in required.values())
            chosen = list(required.values())
            if shortage > 0:
                bound += _least_micros(items, 0, shortage)
                chosen += [item.resident for item in _filled(items, shortage)]
            found = self._greedy[state.room.id] = (bound, chosen)
        return found

    def _required(self, group: Group) -> dict[str, Resident]:
        """Those who have to go, however much is free: for who shares with nobody."""
        return {
            each.engine_id: each
            for state in group
            if self._is_exclusive or state.hardest_exclusive > Tie.LEAVING
            for tie, each in state.residents
            if tie > Tie.LEAVING and (self._is_exclusive or each.is_exclusive)
        }

    def _shortage(self, state: DeviceState, gone: Mapping[str, Resident]) -> int:
        back = sum(each.bytes_by_device.get(state.room.id, 0) for each in gone.values())
        return self._need_bytes - state.most_bytes(Tie.LEAVING) - back

    def _items_of(self, state: DeviceState) -> list[_Item]:
        items = self._items.get(state.room.id)
        if items is None:
            device = state.room.id
            items = [
                _Item(
                    _micros(each) / size, self._weights[each.engine_id], size, _micros(each), each
                )
                for tie, each in state.residents
                if Tie.IDLE <= tie <= self._upto and (size := each.bytes_by_device[device]) > 0
            ]
            items.sort()
            self._items[device] = items
        return items


@dataclass(frozen=True)
class _Scale:
    """Costs, numbers and ranks in one integer, so that sums compare without rounding."""

    count_shift: int
    cost_shift: int

    def weight(self, micros: int, rank: int) -> int:
        """A bit for each rank: of two sets as large that one is less whose newest is older."""
        return (micros << self.cost_shift) + (1 << self.count_shift) + (1 << rank)

    def bound(self, micros: int, count: int) -> int:
        """No set of so many or more, that costs so much or more, weighs less."""
        return (micros << self.cost_shift) + (count << self.count_shift)

    def micros(self, weight: int) -> int:
        """The cost of a set."""
        return weight >> self.cost_shift


@dataclass
class _Budget:
    """Steps that are left to a decision."""

    steps: int

    def spend(self) -> bool:
        """Whether another one may be done."""
        self.steps -= 1
        return self.steps >= 0


@dataclass
class _Cover:
    """Branches over the engines that span devices; the rest is one knapsack for each device."""

    spanning: Sequence[_Item]
    apart: Mapping[str, list[_Item]]
    best: Victims
    scale: _Scale
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
        held = item.resident.bytes_by_device
        less = {device: shortage - held.get(device, 0) for device, shortage in short.items()}
        self.search(index + 1, less, weight + item.weight, (*chosen, item.resident))
        self.search(index + 1, short, weight, chosen)

    def _finish(self, short: Mapping[str, int], weight: int, chosen: tuple[Resident, ...]) -> None:
        for device, shortage in short.items():
            if shortage > 0:
                knapsack = _Knapsack(self.apart[device], self.scale, self.budget)
                knapsack.solve(shortage, self.best.weight - weight)
                if knapsack.best is None:
                    return
                weight += knapsack.best.weight
                chosen += knapsack.best.residents
        if weight < self.best.weight:
            self.best = Victims(weight, chosen)


class _Knapsack:
    """The least set that frees enough on one device."""

    def __init__(self, items: list[_Item], scale: _Scale, budget: _Budget) -> None:
        self._items = items
        self._scale = scale
        self._budget = budget
        self._ceiling = 0
        self._rest: list[tuple[int, int]] = [(0, 0)]
        """From each item on: bytes of all, and of the largest."""
        for item in reversed(items):
            size, largest = self._rest[-1]
            self._rest.append((size + item.size, max(largest, item.size)))
        self._rest.reverse()
        self.best: Victims | None = None

    def solve(self, shortage: int, ceiling: int) -> None:
        """Find the set, unless none weighs less than `ceiling`."""
        if self._rest[0][0] < shortage:
            return
        self._ceiling = ceiling
        self._take(_filled(self._items, shortage))
        self._branch(0, shortage, 0, [])

    def _take(self, items: Iterable[_Item]) -> None:
        items = tuple(items)
        weight = sum(item.weight for item in items)
        if weight < self._ceiling:
            self._ceiling = weight
            self.best = Victims(weight, tuple(item.resident for item in items))

    def _branch(self, index: int, left: int, weight: int, chosen: list[_Item]) -> None:
        if left <= 0:
            self._take(chosen)
            return
        size, largest = self._rest[index]
        if size < left or not self._budget.spend():
            return
        least = self._scale.bound(_least_micros(self._items, index, left), -(-left // largest))
        if weight + least >= self._ceiling:
            return
        item = self._items[index]
        chosen.append(item)
        self._branch(index + 1, left - item.size, weight + item.weight, chosen)
        chosen.pop()
        self._branch(index + 1, left, weight, chosen)


def _micros(resident: Resident) -> int:
    kept_s = _PINNED_COST_S if resident.is_pinned else 0.0
    return round((min(max(resident.cost_s, 0.0), _MOST_COST_S) + kept_s) * _MICRO)


def _least_micros(items: Sequence[_Item], start: int, shortage: int) -> int:
    """The cost of the fractional solution, rounded so that it stays a bound."""
    cost = 0.0
    for index in range(start, len(items)):
        item = items[index]
        if item.size >= shortage:
            cost += item.micros_per_byte * shortage
            break
        cost += item.micros
        shortage -= item.size
    return max(int(cost * (1 - 1e-9)) - 1, 0)


def _filled(items: Sequence[_Item], shortage: int) -> list[_Item]:
    """The cheapest per byte until it suffices, less those not needed; or one that does it alone."""
    chosen = []
    left = shortage
    for item in items:
        if left <= 0:
            break
        chosen.append(item)
        left -= item.size
    for item in sorted(chosen, key=lambda each: -each.weight):
        if item.size <= -left:
            chosen.remove(item)
            left += item.size
    alone = min(((item.weight, item) for item in items if item.size >= shortage), default=None)
    if alone is not None and alone[0] < sum(item.weight for item in chosen):
        return [alone[1]]
    return chosen
