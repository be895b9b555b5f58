"""When a failed engine is tried again. Pure."""

# An engine that was ready this long before it died was sound: the count starts anew.
_SOUND_AFTER_S = 600.0


def attempts_after(attempts: int, ready_s: float | None) -> int:
    """Failures in a row after one more; `ready_s` is how long the engine was ready, if it was."""
    if ready_s is not None and ready_s >= _SOUND_AFTER_S:
        return 1
    return attempts + 1


def pause_s(
    attempts: int, *, was_ready: bool, first_s: float, most_s: float, max_attempts: int
) -> float | None:
    """Seconds until the next try; None: only a person starts it again.

    The first crash of an engine that had been ready is not waited for: who asks next is answered
    by a fresh engine. Otherwise the pause doubles from `first_s` up to `most_s`.
    """
    if attempts >= max_attempts:
        return None
    if was_ready and attempts == 1:
        return 0.0
    return float(min(first_s * 2 ** min(attempts - 1, 30), most_s))
