"""The time that batches and files go by."""

import time
from collections.abc import Callable
from dataclasses import dataclass


def _since_boot() -> float:
    # Goes on while the machine is suspended, as the window of a batch does.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Clock:
    """Two clocks, in seconds: one that people read, and one that never jumps."""

    wall: Callable[[], float] = time.time
    """Unix time; it may be set."""
    steady: Callable[[], float] = _since_boot
    """Of no meaning but for differences."""

    def now(self) -> int:
        """Unix time in whole seconds."""
        return int(self.wall())
