"""The log of one engine: a file, a line index, and tails that never slow the engine.

A pump thread reads the engine's pipe, so the engine never waits for the event loop, and the loop
never waits for the disk.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from appliance.protocol.engines import LogWindow

_INDEX_EVERY = 64
_TAIL_LIMIT = 2000
_LONGEST_LINE = 16_384


class LogTail:
    """One follower; takes batches of lines. Drops its oldest lines and counts them when slow."""

    def __init__(self, next_line: int) -> None:
        self._next_line = next_line
        self._lines: deque[str] = deque()
        self._skipped = 0
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, first_line: int, lines: list[str]) -> None:
        """Add lines; those that the follower has seen already are left out."""
        fresh = lines[max(self._next_line + len(self._lines) + self._skipped - first_line, 0) :]
        self._lines.extend(fresh)
        while len(self._lines) > _TAIL_LIMIT:
            self._lines.popleft()
            self._skipped += 1
        self._ready.set()

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
        lines, self._lines = list(self._lines), deque()
        skipped, self._skipped = self._skipped, 0
        first = self._next_line + skipped
        self._next_line = first + len(lines)
        return first, lines, skipped


class EngineLog:
    """Written by the pump thread, read by anybody in a thread; tails belong to the event loop."""

    def __init__(self, file: Path, engine_id: str, model: str) -> None:
        self.file = file
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
        """Write lines (pump thread); returns the number of the first one."""
        with self._lock:
            first = self._lines + 1
            for line in lines:
                output.write(line + b"\n")
                self._lines += 1
                if self._lines % _INDEX_EVERY == 0:
                    self._index.append(output.tell())
            output.flush()
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

    def tail(self, next_line: int) -> LogTail:
        """Follow from line `next_line` on; hand it back with `untail`."""
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
        rest = b""
        with log.file.open("ab", buffering=65_536) as output:
            while chunk := _read(pipe):
                # Progress bars move with carriage returns.
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines.append(rest)
                    rest = b""
                _hand_over(output, lines)
            if rest:
                _hand_over(output, [rest])
        os.close(pipe)

    def _hand_over(output: BinaryIO, lines: list[bytes]) -> None:
        kept = [line[:_LONGEST_LINE] for line in lines if line.strip()]
        if not kept:
            return
        first = log.append(output, kept)
        try:
            loop.call_soon_threadsafe(on_lines, first, [_text(line) for line in kept])
        except RuntimeError:
            # The loop has ended; the file still gets the lines.
            return

    thread = threading.Thread(target=pump, name="engine-log", daemon=True)
    thread.start()
    return thread


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65_536)
    except OSError:
        return b""


def _text(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", errors="replace")
