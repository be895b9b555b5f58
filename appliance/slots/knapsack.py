"""The engines of one device that free enough and cost least together. Pure."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from appliance.slots.plans import Resident

# One microsecond weighs more than any number of engines.
COUNT_BITS = 24
COST = 1 << COUNT_BITS
# A float holds 53; some are for the sums.
_ROUNDING_BITS = 38

# Cost per byte, last use, engine, size, weight, resident; sorts the cheapest first.
Item = tuple[float, float, str, int, int, Resident]
ENGINE: Final = 2
SIZE: Final = 3
WEIGHT: Final = 4
RESIDENT: Final = 5


@dataclass
class Budget:
    """Steps that are left to a decision."""

    steps: int

    def spend(self, steps: int = 1) -> bool:
        """Whether so many more may be done."""
        self.steps -= steps
        return self.steps >= 0


class Knapsack:
    """The least set that frees enough on one device; None if none weighs less than `ceiling`."""

    def __init__(self, items: list[Item], ceiling: int, budget: Budget) -> None:
        self._items = items
        self._ceiling = ceiling
        self._budget = budget
        self._sizes: list[int] = []
        """Of all items before each."""
        self._weights: list[int] = []
        """Of all items before each."""
        self._largest: list[int] = []
        """Size of the largest from each item on."""
        self.best: list[Item] | None = None

    def solve(self, shortage: int) -> None:
        """Find it."""
        sizes = [item[SIZE] for item in self._items]
        if sum(sizes) < shortage:
            return
        good = good_set(self._items, shortage)
        self._take(good, sum(item[WEIGHT] for item in good))
        if least_weight(self._items, shortage) >= self._ceiling:
            return
        self._sizes = [0, *accumulate(sizes)]
        self._weights = [0, *accumulate(item[WEIGHT] for item in self._items)]
        self._largest = [*accumulate(reversed(sizes), max)]
        self._largest.reverse()
        self._branch(0, shortage, 0, [])

    def _take(self, items: list[Item], weight: int) -> None:
        if weight < self._ceiling:
            self._ceiling = weight
            self.best = list(items)

    def _branch(self, index: int, left: int, weight: int, chosen: list[Item]) -> None:
        if left <= 0:
            self._take(chosen, weight)
            return
        if self._sizes[-1] - self._sizes[index] < left or not self._budget.spend():
            return
        if weight - (-left // self._largest[index]) >= self._ceiling:
            return
        if weight + self._least_from(index, left) >= self._ceiling:
            return
        item = self._items[index]
        chosen.append(item)
        self._branch(index + 1, left - item[SIZE], weight + item[WEIGHT], chosen)
        chosen.pop()
        self._branch(index + 1, left, weight, chosen)

    def _least_from(self, start: int, shortage: int) -> int:
        """The same as of a list that begins there; all items from there on suffice."""
        goal = self._sizes[start] + shortage
        last = bisect_left(self._sizes, goal, start + 1) - 1
        item = self._items[last]
        weight = self._weights[last] - self._weights[start]
        return _rounded(weight + _part(item, goal - self._sizes[last]))


def least_weight(items: Sequence[Item], shortage: int) -> int:
    """The weight of the fractional solution."""
    weight = 0
    for item in items:
        size = item[SIZE]
        if size >= shortage:
            weight += _part(item, shortage)
            break
        weight += item[WEIGHT]
        shortage -= size
    return _rounded(weight)


def _part(item: Item, size: int) -> int:
    """What so many of its bytes weigh."""
    part = int(item[0] * size)
    return item[WEIGHT] if part > item[WEIGHT] else part or 1


def _rounded(weight: int) -> int:
    """Less than what floats may have added to it."""
    return weight - (weight >> _ROUNDING_BITS)


def good_set(items: Sequence[Item], shortage: int) -> list[Item]:
    """A good set for one device: by cost per byte, or a single one, or few of them."""
    chosen = []
    left = shortage
    for item in items:
        if left <= 0:
            break
        chosen.append(item)
        left -= item[SIZE]
    for item in sorted(chosen, key=lambda each: -each[WEIGHT]):
        if item[SIZE] <= -left:
            chosen.remove(item)
            left += item[SIZE]
    alone = [(item[WEIGHT], item[1:3], item) for item in items if item[SIZE] >= shortage]
    others = [[min(alone)[2]]] if alone else []
    if len(chosen) > 1 and not alone and all(item[WEIGHT] < COST for item in chosen):
        others.append(_fewest(items, shortage))
    return min([chosen, *others], key=lambda each: sum(item[WEIGHT] for item in each))


def _fewest(items: Sequence[Item], shortage: int) -> list[Item]:
    """No more than needed at least; of those the first, as long as the largest could follow."""
    rest = sorted((item[SIZE] for item in items), reverse=True)
    count = covered = 0
    while covered < shortage:
        covered += rest[count]
        count += 1
    chosen: list[Item] = []
    left = shortage
    for item in items:
        size = item[SIZE]
        rest.remove(size)
        if sum(rest[: count - len(chosen) - 1]) >= left - size:
            chosen.append(item)
            left -= size
            if left <= 0:
                break
    return chosen
