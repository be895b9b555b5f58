"""Requests per second over the last few seconds."""

from collections import deque

_WINDOW_S = 10.0
_MOST = 10_000


class RequestRate:
    """Counts arrivals; times are seconds of a monotonic clock that the caller gives."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=_MOST)

    def add(self, now: float) -> None:
        """A request came."""
        self._arrivals.append(now)

    def per_second(self, now: float) -> float:
        """Mean over the window that ends now."""
        while self._arrivals and self._arrivals[0] < now - _WINDOW_S:
            self._arrivals.popleft()
        return round(len(self._arrivals) / _WINDOW_S, 1)
