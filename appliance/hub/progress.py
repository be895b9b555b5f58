"""How far a pull is and how fast it goes. Pure: the time is an argument, in steady seconds."""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from appliance.hub.messages import Going
from appliance.protocol.pulls import Pull, PullFile, PullState

_WINDOW_S = 10.0
_LEAST_S = 1.0
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0


class Rate:
    """Bytes per second over the last few seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, received_bytes: int) -> None:
        """So many bytes have come so far."""
        self._samples.append((now, received_bytes))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()

    def per_s(self) -> float | None:
        """None: not known yet."""
        if len(self._samples) < 2:
            return None
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - begin) if end - begin >= _LEAST_S else None


class Patience:
    """How long to wait for a hub that cannot be reached, and when to give up."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._pauses = 0
        self._most_bytes = 0

    def have(self, now: float, done_bytes: int) -> None:
        """So much is there; only more than ever counts, as a hub may send the same again."""
        if done_bytes > self._most_bytes:
            self._most_bytes = done_bytes
            self._since = now
            self._pauses = 0

    def pause_s(self, now: float, give_up_s: float) -> float | None:
        """Seconds until the next try, longer each time; None: it has lasted too long."""
        if now - self._since >= give_up_s:
            return None
        self._pauses += 1
        return float(min(_FIRST_PAUSE_S * 2 ** (self._pauses - 1), _LONGEST_PAUSE_S))


def gone_on(pull: Pull, going: Going, rate: float | None) -> Pull:
    """The pull after such a message."""
    left = pull.total_bytes - going.done_bytes
    return msgspec.structs.replace(
        pull,
        current=going.current,
        done_bytes=going.done_bytes,
        rate_bytes_per_s=None if rate is None else round(rate),
        eta_s=round(left / rate, 1) if rate else None,
    )


def verified(files: Sequence[PullFile], path: str) -> list[PullFile]:
    """The files, that one marked."""
    return [
        msgspec.structs.replace(file, is_verified=True) if file.path == path else file
        for file in files
    ]


def at_rest(pull: Pull, state: PullState) -> Pull:
    """The pull as nothing works on it any more, or not yet."""
    return msgspec.structs.replace(
        pull,
        state=state,
        phase=None,
        current=[],
        rate_bytes_per_s=None,
        eta_s=None,
        problem=None,
        retry_at=None,
        ended_at=datetime.now(UTC) if state.is_final else None,
    )


def headline(pull: Pull) -> tuple[object, ...]:
    """What people are told of as soon as it changes."""
    return pull.state, pull.phase, pull.commit, pull.problem, pull.retry_at
