"""Short histories for the sparklines, one value a second."""

from collections import deque

SECONDS_KEPT = 600


class History:
    """The last ten minutes of one number.

    The server sends numbers only while they change, so the seconds between two samples take the
    value of the earlier one.
    """

    def __init__(self, seconds: int = SECONDS_KEPT) -> None:
        self._values: deque[float] = deque(maxlen=seconds)
        self._last_second: int | None = None

    def add(self, now: float, value: float) -> None:
        """Record `value` at monotonic time `now`."""
        second = int(now)
        if self._last_second is None or not self._values:
            self._values.append(value)
        elif second <= self._last_second:
            self._values[-1] = value
            return
        else:
            silent = min(second - self._last_second - 1, self._values.maxlen or 0)
            self._values.extend([self._values[-1]] * silent)
            self._values.append(value)
        self._last_second = second

    def last(self, count: int) -> list[float]:
        """Up to `count` newest values, oldest first."""
        if count <= 0:
            return []
        return list(self._values)[-count:]
