"""Lines on their way from the pump thread to the event loop. Bounded: the oldest give way."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from appliance.units import MIB

_MOST_BYTES = 4 * MIB

OnLines = Callable[[int, list[str]], None]
OnUpdate = Callable[[str], None]


class Handover:
    """Calls back in the event loop, batch by batch in their order."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_lines: OnLines, on_update: OnUpdate | None
    ) -> None:
        self._loop = loop
        self._on_lines = on_lines
        self._on_update = on_update
        self._lock = threading.Lock()
        self._batches: deque[tuple[int, list[bytes], int]] = deque()
        self._bytes = 0
        self._updates: list[str] = []
        self._is_called = False

    def put(self, first_line: int, lines: list[bytes], updates: list[str]) -> None:
        """Add a batch of lines, and where unfinished bars stand behind it (pump thread)."""
        if self._on_update is None:
            updates = []
        with self._lock:
            if lines:
                size = sum(map(len, lines))
                self._batches.append((first_line, lines, size))
                self._bytes += size
                while self._bytes > _MOST_BYTES and len(self._batches) > 1:
                    self._bytes -= self._batches.popleft()[2]
            self._updates = updates
            if self._is_called or not (lines or updates):
                return
            self._is_called = True
        self._call(self._take)

    def end(self) -> None:
        """Nothing more comes; what waits is delivered before anything that is asked from now on."""
        self._call(self._take_all)

    def _call(self, function: Callable[[], object]) -> None:
        # Without a loop nobody listens any more; the file has the lines.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def _take(self) -> None:
        """One batch at a time, so that a flood leaves the loop to others in between."""
        if self._deliver():
            self._loop.call_soon(self._take)

    def _take_all(self) -> None:
        while self._deliver():
            pass

    def _deliver(self) -> bool:
        """Whether more is waiting."""
        batch = None
        updates: list[str] = []
        with self._lock:
            if self._batches:
                batch = self._batches.popleft()
                self._bytes -= batch[2]
            if not self._batches:
                updates, self._updates = self._updates, updates
            self._is_called = is_more = bool(self._batches)
        if batch is not None:
            self._on_lines(batch[0], texts(batch[1]))
        if self._on_update is not None:
            for update in updates:
                self._on_update(update)
        return is_more


def texts(lines: list[bytes]) -> list[str]:
    """Lines as people read them; bytes that are no text are shown as such."""
    if not lines:
        return []
    return b"\n".join(lines).decode("utf-8", errors="replace").split("\n")
