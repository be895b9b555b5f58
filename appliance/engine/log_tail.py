"""Followers of a log. Each has its own bounded queue: a slow one slows nobody and loses lines."""

import asyncio
import sys
from collections import deque

from appliance.engine.log_search import Found, LogFilter
from appliance.engine.log_store import Block
from appliance.units import MIB

_MOST_LINES = 2000
_MOST_BYTES = MIB


class _Queue:
    """The waiting of a follower; the bounds of what is held for it."""

    def __init__(self) -> None:
        self._ready = asyncio.Event()
        self._closed = False
        self._bytes = 0

    def close(self) -> None:
        """No more lines will come."""
        self._closed = True
        self._ready.set()

    async def _wait(self, timeout_s: float) -> None:
        """Until there is something to take, or not; raises StopAsyncIteration at the end."""
        if self._closed:
            raise StopAsyncIteration
        self._ready.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return

    def _is_too_long(self, count: int) -> bool:
        return count > _MOST_LINES or (count > 1 and self._bytes > _MOST_BYTES)


class LogTail(_Queue):
    """One follower; takes batches of lines. Drops its oldest lines and counts them when slow.

    Without `next_line` it collects from its first batch on; `begin_at` then drops what the
    follower has read from the file in the meantime.
    """

    def __init__(self, next_line: int | None = None) -> None:
        super().__init__()
        self._next_line = next_line
        self._first_held = 0
        self._lines: deque[str] = deque()

    def put(self, first_line: int, lines: list[str]) -> None:
        """Add lines; those that the follower has seen already are left out."""
        if self._next_line is None:
            self._next_line = first_line
        if not self._lines:
            self._first_held = max(self._next_line, first_line)
        elif first_line > self._first_held + len(self._lines):
            # A batch is without gaps: what is held before one is given up.
            self._lines.clear()
            self._bytes = 0
            self._first_held = first_line
        expected = self._first_held + len(self._lines)
        for line in lines[max(expected - first_line, 0) :]:
            self._lines.append(line)
            self._bytes += sys.getsizeof(line)
        while self._is_too_long(len(self._lines)):
            self._drop_oldest()
        if self._lines:
            self._ready.set()

    def begin_at(self, next_line: int) -> None:
        """The follower has all lines before this one."""
        self._next_line = next_line
        while self._lines and self._first_held < next_line:
            self._drop_oldest()

    async def batch(self, timeout_s: float) -> tuple[int, list[str], int] | None:
        """First line number, lines, skipped before them; None after `timeout_s` without any.

        Raises StopAsyncIteration at the end of the log.
        """
        if not self._lines:
            await self._wait(timeout_s)
        if not self._lines or self._next_line is None:
            return None
        first, lines = self._first_held, list(self._lines)
        skipped = first - self._next_line
        self._lines.clear()
        self._bytes = 0
        self._next_line = first + len(lines)
        return first, lines, skipped

    def _drop_oldest(self) -> None:
        self._bytes -= sys.getsizeof(self._lines.popleft())
        self._first_held += 1


class MatchTail(_Queue):
    """As `LogTail`, for the lines that a filter keeps; counts the matches that it drops."""

    def __init__(self, keep: LogFilter, next_line: int | None = None) -> None:
        super().__init__()
        self._keep = keep
        self._next_line = next_line
        self._seen_from: int | None = None
        self._seen_to = next_line
        self._matches: deque[tuple[int, bytes]] = deque()
        self._skipped = 0
        self._last_dropped = 0

    def put(self, block: Block) -> None:
        """Look at new lines; those that the follower has seen already are left out."""
        if self._seen_to is None:
            self._seen_to = block.first_line
        if self._seen_from is None:
            self._seen_from = block.first_line
        self._skipped += max(block.first_line - self._seen_to, 0)
        for number, start, end in self._keep.find(block):
            if number >= self._seen_to:
                self._matches.append((number, block.data[start:end]))
                self._bytes += end - start
        self._seen_to = max(self._seen_to, block.end_line)
        while self._is_too_long(len(self._matches)):
            self._last_dropped = self._drop_oldest()
            self._skipped += 1
        if self._matches:
            self._ready.set()

    def begin_at(self, next_line: int) -> None:
        """The follower has the matches of all lines before this one."""
        self._next_line = next_line
        while self._matches and self._matches[0][0] < next_line:
            self._drop_oldest()
        if self._last_dropped < next_line:
            self._skipped = max((self._seen_from or next_line) - next_line, 0)
        self._seen_to = max(self._seen_to or next_line, next_line)

    async def batch(self, timeout_s: float) -> Found | None:
        """New matches; None after `timeout_s` without any.

        Raises StopAsyncIteration at the end of the log.
        """
        if not self._matches:
            await self._wait(timeout_s)
        if not self._matches or self._seen_to is None:
            return None
        batch = Found(
            lines=list(self._matches),
            scanned_from=self._next_line or self._seen_from or 1,
            scanned_to=self._seen_to,
            is_complete=True,
            skipped=self._skipped,
        )
        self._matches.clear()
        self._bytes = self._skipped = 0
        self._next_line = self._seen_to
        return batch

    def _drop_oldest(self) -> int:
        number, line = self._matches.popleft()
        self._bytes -= len(line)
        return number
