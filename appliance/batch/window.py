"""How many requests of batches an engine gets at a time. Pure.

The engine's own figures steer it: while nothing waits inside it, it could take more; what
waits there only takes memory, and people wait behind it.
"""

from dataclasses import dataclass

FIRST = 64
# While people use the engine: enough to go on, too few to be felt.
_BESIDE_PEOPLE = 1
_GROWTH = 2.0
# Waiting inside the engine that bridges the time until its figures are read again.
_STOCK_RATIO = 0.25
_FULL_CACHE_RATIO = 0.95


@dataclass(frozen=True, kw_only=True)
class Load:
    """What an engine says about itself (vLLM's /metrics)."""

    running: int
    waiting: int
    kv_cache_ratio: float


def next_window(window: int, load: Load | None, *, most: int, people: bool) -> int:
    """The window after a look at the engine; `load` is None if it did not say."""
    if people:
        return min(_BESIDE_PEOPLE, most)
    if load is None:
        return min(max(window, FIRST), most)
    stock = max(int(load.running * _STOCK_RATIO), 4)
    if load.waiting > stock or load.kv_cache_ratio > _FULL_CACHE_RATIO:
        return max(min(load.running + stock, window), 1)
    is_used_up = load.running + load.waiting >= window * 0.75
    if is_used_up:
        window = int(window * _GROWTH) + 1
    return min(max(window, FIRST), most)
