"""The link to the server: a pure state machine; time and chance are arguments."""

from dataclasses import dataclass, replace
from enum import StrEnum

STALE_AFTER_S = 6.0
"""The server sends a heartbeat every 5 s."""
GIVEN_UP_AFTER_S = 60.0
FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 5.0


class Link(StrEnum):
    """How the server can be reached."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"
    RECONNECTING = "reconnecting"
    DISCONNECTED = "disconnected"
    UNAUTHORISED = "unauthorised"
    MISMATCH = "mismatch"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The link at one moment; times are monotonic seconds."""

    link: Link = Link.CONNECTING
    since: float = 0.0
    heard_at: float | None = None
    lost_at: float | None = None
    attempt: int = 0
    retry_at: float | None = None
    error: str = ""
    hint: str = ""

    @property
    def is_current(self) -> bool:
        """True while the picture can be trusted."""
        return self.link in {Link.LIVE, Link.MISMATCH}


def delay_before(attempt: int, chance: float) -> float:
    """Seconds before retry number `attempt` (from 1); `chance` in 0..1 spreads the clients."""
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 16))
    return longest * (0.5 + 0.5 * chance)


def heard(connection: Connection, now: float) -> Connection:
    """An event or a heartbeat came."""
    if connection.link in {Link.LIVE, Link.MISMATCH}:
        return replace(connection, heard_at=now)
    return Connection(link=Link.LIVE, since=now, heard_at=now)


def mismatched(connection: Connection, now: float, error: str, hint: str) -> Connection:
    """The server speaks another version of the interface."""
    since = connection.since if connection.link is Link.MISMATCH else now
    return Connection(link=Link.MISMATCH, since=since, heard_at=now, error=error, hint=hint)


def failed(
    connection: Connection, now: float, *, error: str, hint: str = "", chance: float
) -> Connection:
    """The stream broke or could not be opened."""
    attempt = connection.attempt + 1
    lost_at = now if connection.lost_at is None else connection.lost_at
    next_link = Link.RECONNECTING
    if now - lost_at > GIVEN_UP_AFTER_S:
        next_link = Link.DISCONNECTED
    return replace(
        connection,
        link=next_link,
        since=connection.since if connection.link is next_link else now,
        lost_at=lost_at,
        attempt=attempt,
        retry_at=now + delay_before(attempt, chance),
        error=error,
        hint=hint,
    )


def refused(connection: Connection, now: float, *, error: str, hint: str) -> Connection:
    """401 or 403: nothing is tried again until a person acts."""
    return Connection(
        link=Link.UNAUTHORISED, since=now, heard_at=connection.heard_at, error=error, hint=hint
    )


def retrying(connection: Connection, now: float) -> Connection:
    """The next attempt starts."""
    link = Link.CONNECTING if connection.link is Link.UNAUTHORISED else connection.link
    return replace(connection, link=link, retry_at=None, since=now)


def tick(connection: Connection, now: float) -> Connection:
    """Time went by."""
    silent = None if connection.heard_at is None else now - connection.heard_at
    if connection.link is Link.LIVE and silent is not None and silent > STALE_AFTER_S:
        return replace(connection, link=Link.STALE, since=now)
    lost = None if connection.lost_at is None else now - connection.lost_at
    if connection.link is Link.RECONNECTING and lost is not None and lost > GIVEN_UP_AFTER_S:
        return replace(connection, link=Link.DISCONNECTED, since=now)
    return connection
