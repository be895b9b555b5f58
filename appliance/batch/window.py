"""How many requests of batches an engine gets at a time. Pure.

The engine's own figures steer it: while nothing waits inside it, it could take more; what
waits there only takes memory. Short requests come and go in waves, so that one look says
little: it is judged by the looks of the last seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# vLLM's own number of sequences (`max_num_seqs`) where its memory allows them.
FIRST = 256
_LOOKS = 4
# While people use the engine: enough to go on, too few to be felt.
_BESIDE_PEOPLE = 1
# Waiting inside the engine that bridges the time until a finished request's successor is there.
_STOCK_RATIO = 0.25
_LEAST_STOCK = 4
_FULL_CACHE_RATIO = 0.95


@dataclass(frozen=True, kw_only=True)
class Load:
    """What an engine says about itself (vLLM's /metrics)."""

    running: int
    waiting: int
    kv_cache_ratio: float


class Window:
    """The size for one engine, from look to look."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._looks: list[Load] = []
        self._is_beside_people = False
        self.size = min(FIRST, most)

    def restart(self) -> None:
        """There is no engine now; what the last one could do says nothing about the next."""
        self._to(min(FIRST, self._most))

    def look(self, load: Load | None, *, people: bool) -> None:
        """What the engine says about itself, None if it did not; `people` use it as well."""
        if people != self._is_beside_people:
            self._is_beside_people = people
            self._to(min(_BESIDE_PEOPLE if people else FIRST, self._most))
        elif load is not None and not people:
            self._looks = [*self._looks, load][-_LOOKS:]
            self._to(min(next_size(self.size, self._looks), self._most))

    def _to(self, size: int) -> None:
        if size != self.size:
            # Those of another size would be judged again.
            self._looks = []
        self.size = size


def next_size(size: int, looks: Sequence[Load]) -> int:
    """The size after the newest of `looks`, which were all taken with this one.

    It stays until there are enough of them. What never stopped waiting is too much; where
    everything was taken at least once, twice of what ran at a time finds room.
    """
    if len(looks) < _LOOKS:
        return size
    running = max(look.running for look in looks)
    always_waiting = min(look.waiting for look in looks)
    is_full = min(look.kv_cache_ratio for look in looks) > _FULL_CACHE_RATIO
    stock = max(int(running * _STOCK_RATIO), _LEAST_STOCK)
    if always_waiting > stock:
        return max(size - (always_waiting - stock), 1)
    if always_waiting * 2 < stock and not is_full:
        return max(size, min(2 * size, 2 * running))
    return size
