"""One load, seen from outside: phase, percentage, and whether it still moves. Pure."""

from appliance.engine.progress import LoadTracker, SignsOfLife
from appliance.protocol.engines import LoadProgress
from appliance.store.models import LoadRecord
from appliance.units import MIB

# Probes of ours make the engine read a little as well.
_LEAST_READ = 4 * MIB


class Loading:
    """Follows a load by its log and its reads. Times: seconds of a monotonic clock."""

    def __init__(self, now: float, earlier: list[LoadRecord], weights_bytes: int) -> None:
        self._tracker = LoadTracker(now, earlier)
        self._signs = SignsOfLife(now)
        self._weights_bytes = weights_bytes
        self._read_bytes = 0

    def feed(self, lines: list[str], now: float) -> bool:
        """Take log lines; True if the progress changed."""
        changed = False
        for line in lines:
            changed = self._tracker.feed(line, now) or changed
            self._signs.note(line, now)
        if changed:
            self._signs.last = now
        return changed

    def note_read(self, read_bytes: int, now: float) -> None:
        """Bytes that its processes have read so far."""
        if read_bytes - self._read_bytes >= _LEAST_READ:
            self._read_bytes = read_bytes
            self._signs.last = now
        self._tracker.note_read(read_bytes, self._weights_bytes)

    def progress(self, now: float) -> LoadProgress:
        """Where the load is now."""
        return self._tracker.progress(now)

    def finish(self, now: float) -> dict[str, float]:
        """Seconds of each phase."""
        return self._tracker.finish(now)

    def stalled_s(self, now: float) -> float:
        """Seconds since it last did something new."""
        return now - self._signs.last
