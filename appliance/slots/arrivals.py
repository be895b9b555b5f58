"""How often a model is asked for, of late: one number per half-life, whatever came. Pure.

Each arrival counts 1 and fades with the half-life, so that a steady Poisson stream of rate r
settles at a count of r * half_life / ln 2 (the mean of shot noise, Campbell's theorem).
"""

import math
from dataclasses import dataclass

SHORT_HALF_LIFE_S = 60.0
"""A burst is noticed, and is over, within about a minute."""
LONG_HALF_LIFE_S = 3600.0
"""What a model's day is like."""


@dataclass
class ArrivalRate:
    """Requests per second; times are seconds of a monotonic clock that the caller gives.

    The larger of a quick and a slow estimate counts: a burst raises it at once, and a model that is
    asked for now and then is not forgotten within a minute.
    """

    short_half_life_s: float = SHORT_HALF_LIFE_S
    long_half_life_s: float = LONG_HALF_LIFE_S
    last: float | None = None
    """When the last arrival came."""
    _short: float = 0.0
    _long: float = 0.0

    def add(self, now: float, count: int = 1) -> None:
        """That many requests came; takes the same time however many came before."""
        self._short = self._faded(self._short, self.short_half_life_s, now) + count
        self._long = self._faded(self._long, self.long_half_life_s, now) + count
        self.last = now if self.last is None else max(now, self.last)

    def per_second(self, now: float) -> float:
        """The estimate at that time; 0 as long as nothing came."""
        short = self._faded(self._short, self.short_half_life_s, now) / self.short_half_life_s
        long = self._faded(self._long, self.long_half_life_s, now) / self.long_half_life_s
        return max(short, long) * math.log(2)

    def idle_s(self, now: float) -> float:
        """Seconds since the last arrival; infinite if there was none."""
        return math.inf if self.last is None else max(now - self.last, 0.0)

    def _faded(self, count: float, half_life_s: float, now: float) -> float:
        if self.last is None:
            return 0.0
        age: float = max(now - self.last, 0.0)
        return count * math.exp2(-age / half_life_s)
