"""When a failed engine is tried again, and when no more. Pure; times are of the monotonic clock.

A try follows a failure after a pause that doubles from `first_s` up to `most_s`, in two rows of
counting: failures in a row, which an engine ends that was sound (ready for ten minutes) or that
worked until it was asked to go; and failures within the last hour, which nothing ends but time or
a person. When either reaches `max_attempts`, only a person starts the model again. The second
count is for engines that load well and crash each time after a while: their row never grows.
"""

from dataclasses import dataclass

# An engine that was ready this long before it died was sound.
SOUND_AFTER_S = 600.0
WINDOW_S = 3600.0


@dataclass(frozen=True)
class FailureSeries:
    """The failures of a model that count for its next try."""

    in_row: int = 0
    recent: tuple[float, ...] = ()
    """Times of those within the window, oldest first."""

    def after_failure(self, now: float, ready_s: float | None) -> "FailureSeries":
        """One more; `ready_s` is how long the engine was ready, None if it never was."""
        was_sound = ready_s is not None and ready_s >= SOUND_AFTER_S
        recent = tuple(at for at in self.recent if now - at < WINDOW_S)
        return FailureSeries(1 if was_sound else self.in_row + 1, (*recent, now))

    def after_success(self) -> "FailureSeries":
        """The engine worked until it was asked to go, or was sound: a later failure is another."""
        return FailureSeries(0, self.recent)

    def without(self, failures: int) -> "FailureSeries":
        """The newest ones do not count: they were the fault of what the engines were given."""
        kept = max(len(self.recent) - failures, 0)
        return FailureSeries(max(self.in_row - failures, 0), self.recent[:kept])

    def pause_s(
        self, *, was_ready: bool, first_s: float, most_s: float, max_attempts: int
    ) -> float | None:
        """Seconds from the newest failure to the next try; None: only a person starts it again.

        The first crash of an engine that had been ready is not waited for: who asks next is
        answered by a fresh engine.
        """
        if max(self.in_row, len(self.recent)) >= max_attempts:
            return None
        if was_ready and self.in_row == 1:
            return 0.0
        return float(min(first_s * 2 ** min(max(self.in_row - 1, 0), 30), most_s))
