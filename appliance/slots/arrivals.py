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

# Of the gaps between requests: how much the newest one counts, and what is regular.
_GAP_WEIGHT = 0.3
_REGULAR_GAPS = 3
_SPREAD = 0.33
_LATE = 1.5


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
    _gap_s: float = 0.0
    _gap_square: float = 0.0
    _gaps: int = 0

    def add(self, now: float, count: int = 1) -> None:
        """That many requests came; takes the same time however many came before."""
        if self.last is not None:
            self._count_gap(max(now - self.last, 0.0))
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

    def next_in_s(self, now: float) -> float | None:
        """Seconds until the next request of somebody who asks regularly; None if nobody does.

        Regular: the last few gaps spread by less than a third of their mean, and the silence is
        not longer than half as much again.
        """
        if self._gaps < _REGULAR_GAPS or not self._gap_s:
            return None
        variance = max(self._gap_square - self._gap_s**2, 0.0)
        idle_s = self.idle_s(now)
        if math.sqrt(variance) > _SPREAD * self._gap_s or idle_s > _LATE * self._gap_s:
            return None
        return max(self._gap_s - idle_s, 0.0)

    def _count_gap(self, gap_s: float) -> None:
        weight = max(_GAP_WEIGHT, 1 / (self._gaps + 1))
        self._gap_s += weight * (gap_s - self._gap_s)
        self._gap_square += weight * (gap_s**2 - self._gap_square)
        self._gaps += 1

    def _faded(self, count: float, half_life_s: float, now: float) -> float:
        if self.last is None:
            return 0.0
        age: float = max(now - self.last, 0.0)
        return count * math.exp2(-age / half_life_s)
