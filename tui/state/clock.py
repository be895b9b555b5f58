"""Time as an argument, so that a picture can be drawn for any moment."""

import time
from datetime import UTC, datetime, tzinfo
from typing import Protocol


class Clock(Protocol):
    """Where the interface reads the time."""

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...

    def now(self) -> datetime:
        """Wall clock, aware."""
        ...

    def local(self, moment: datetime) -> datetime:
        """`moment` in the zone of the person who reads."""
        ...


class SystemClock:
    """The clock of this machine."""

    def __init__(self, zone: tzinfo | None = None) -> None:
        self._zone = zone

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()

    def now(self) -> datetime:
        """Wall clock in UTC."""
        return datetime.now(UTC)

    def local(self, moment: datetime) -> datetime:
        """`moment` in this machine's zone."""
        return moment.astimezone(self._zone)
