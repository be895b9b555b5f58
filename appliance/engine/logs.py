"""The log of one engine: a file, a line index, and tails that never slow the engine.

A pump thread reads the engine's pipe, so the engine never waits for the event loop, and the loop
never waits for the disk.
"""

import asyncio
import contextlib
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from appliance.protocol.engines import LogWindow
from appliance.units import MIB

logger = logging.getLogger(__name__)

_INDEX_EVERY = 64
_TAIL_LIMIT = 2000
_LONGEST_LINE = 16_384
_FULL = b"(the log has reached its size limit; further lines are shown live but not kept)"


class LogTail:
    """One follower; takes batches of lines. Drops its oldest lines and counts them when slow.

    Without `next_line` it collects from its first batch on; `begin_at` then drops what the
    follower has read from the file in the meantime.
    """

    def __init__(self, next_line: int | None = None) -> None:
        self._next_line = next_line
        self._first_held = 0
        self._lines: deque[str] = deque()
        self._skipped = 0
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, first_line: int, lines: list[str]) -> None:
        """Add lines; those that the follower has seen already are left out."""
        if not self._lines:
            self._first_held = first_line
        expected = self._first_held + len(self._lines)
        if not self._lines and self._next_line is not None:
            expected = self._first_held = max(self._next_line + self._skipped, first_line)
            self._skipped = self._first_held - self._next_line
        self._lines.extend(lines[max(expected - first_line, 0) :])
        while len(self._lines) > _TAIL_LIMIT:
            self._drop_oldest()
        if self._lines:
            self._ready.set()

    def begin_at(self, next_line: int) -> None:
        """The follower has all lines before this one."""
        self._next_line = next_line
        while self._lines and self._first_held < next_line:
            self._lines.popleft()
            self._first_held += 1
        self._skipped = self._first_held - next_line if self._lines else 0

    def _drop_oldest(self) -> None:
        self._lines.popleft()
        self._first_held += 1
        self._skipped += 1

    def close(self) -> None:
        """No more lines will come."""
        self._closed = True
        self._ready.set()

    async def batch(self, timeout_s: float) -> tuple[int, list[str], int] | None:
        """First line number, lines, skipped before them; None after `timeout_s` without any.

        Raises StopAsyncIteration at the end of the log.
        """
        if not self._lines:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ready.wait()
            except TimeoutError:
                return None
            if not self._lines:
                return None
        first, lines, skipped = self._first_held, list(self._lines), self._skipped
        self._lines.clear()
        self._skipped = 0
        self._next_line = first + len(lines)
        return first, lines, skipped


class EngineLog:
    """Written by the pump thread, read by anybody in a thread; tails belong to the event loop."""

    def __init__(
        self, file: Path, engine_id: str, model: str, *, limit_bytes: int = 256 * MIB
    ) -> None:
        self.file = file
        self._limit_bytes = limit_bytes
        self._size = 0
        self._engine_id = engine_id
        self._model = model
        self._index = [0]
        self._lines = 0
        self._lock = threading.Lock()
        self._tails: set[LogTail] = set()
        self._closed = False

    @property
    def line_count(self) -> int:
        """Lines so far."""
        return self._lines

    def append(self, output: BinaryIO, lines: Iterable[bytes]) -> int:
        """Write lines (pump thread); returns the number of the first one.

        Raises OSError if the disk does not take them; then none of them is kept.
        """
        with self._lock:
            first = self._lines + 1
            kept = list(lines)
            if self._size >= self._limit_bytes:
                return first
            data = b"\n".join([*kept, b""])
            if self._size + len(data) > self._limit_bytes:
                kept = [_FULL]
                data = _FULL + b"\n"
                self._limit_bytes = self._size
            try:
                _write_all(output, data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(output.fileno(), self._size)
                raise
            for line in kept:
                self._size += len(line) + 1
                self._lines += 1
                if self._lines % _INDEX_EVERY == 0:
                    self._index.append(self._size)
            return first

    def window(self, first_line: int, count: int) -> LogWindow:
        """`count` lines from `first_line` on, counted from 1 (blocks: call it in a thread)."""
        with self._lock:
            total = self._lines
            first = max(min(first_line, total + 1), 1)
            offset = self._index[(first - 1) // _INDEX_EVERY]
        skip = (first - 1) % _INDEX_EVERY
        wanted = min(count, total - first + 1)
        lines: list[str] = []
        if wanted > 0:
            with self.file.open("rb") as source:
                source.seek(offset)
                for _ in range(skip):
                    source.readline()
                lines = [_text(source.readline()) for _ in range(wanted)]
        return LogWindow(
            engine_id=self._engine_id,
            model=self._model,
            first_line=first,
            total_lines=total,
            lines=lines,
        )

    def last(self, count: int) -> LogWindow:
        """The newest `count` lines (blocks: call it in a thread)."""
        return self.window(self._lines - count + 1, count)

    def tail(self, next_line: int | None = None) -> LogTail:
        """Follow from line `next_line` on, or from now on; hand it back with `untail`."""
        tail = LogTail(next_line)
        if self._closed:
            tail.close()
        else:
            self._tails.add(tail)
        return tail

    def untail(self, tail: LogTail) -> None:
        """Stop following."""
        self._tails.discard(tail)

    def deliver(self, first_line: int, lines: list[str]) -> None:
        """Hand new lines to the tails (event loop)."""
        for tail in self._tails:
            tail.put(first_line, lines)

    def close(self) -> None:
        """No more lines will come (event loop)."""
        self._closed = True
        for tail in self._tails:
            tail.close()
        self._tails.clear()


def start_pump(
    pipe: int,
    log: EngineLog,
    loop: asyncio.AbstractEventLoop,
    on_lines: Callable[[int, list[str]], None],
) -> threading.Thread:
    """Read `pipe` to its end in a thread, write the log, hand the lines to the event loop."""

    def pump() -> None:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    output = stack.enter_context(log.file.open("ab", buffering=0))
                except OSError as error:
                    logger.error("engine.log_unwritable file=%s error=%s", log.file.name, error)
                    output = stack.enter_context(Path(os.devnull).open("ab", buffering=0))
                _pump_lines(pipe, output, hand_over)
        finally:
            os.close(pipe)

    def hand_over(output: BinaryIO, lines: list[bytes]) -> None:
        kept = [line[:_LONGEST_LINE] for line in lines if line.strip()]
        if not kept:
            return
        try:
            first = log.append(output, kept)
        except OSError:
            # A full disk must not stop the engine: its lines are shown and then lost.
            first = log.line_count + 1
        try:
            loop.call_soon_threadsafe(on_lines, first, [_text(line) for line in kept])
        except RuntimeError:
            # The loop has ended; the file still gets the lines.
            return

    thread = threading.Thread(target=pump, name="engine-log", daemon=True)
    thread.start()
    return thread


def _pump_lines(
    pipe: int, output: BinaryIO, hand_over: Callable[[BinaryIO, list[bytes]], None]
) -> None:
    rest = b""
    while chunk := _read(pipe):
        # Progress bars move with carriage returns.
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = b""
        hand_over(output, lines)
    if rest:
        hand_over(output, [rest])


def _write_all(output: BinaryIO, data: bytes) -> None:
    if output.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    output.flush()


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65_536)
    except OSError:
        return b""


def _text(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", errors="replace")
