"""The log of one engine: kept lines, their numbers, and tails that never slow the engine.

A pump thread reads the engine's pipe, so the engine never waits for the event loop, and the loop
never waits for the disk.
"""

import asyncio
import glob
import os
import threading
from pathlib import Path

from appliance.engine.log_handover import Handover, OnLines, OnUpdate, texts
from appliance.engine.log_lines import LineFolder
from appliance.engine.log_search import Found, LogFilter, search_before, search_from
from appliance.engine.log_store import Block, LogStore
from appliance.engine.log_tail import LogTail, MatchTail
from appliance.protocol.engines import LogMatch, LogMatches, LogWindow
from appliance.units import MIB

# Of one window: more lines than a page of the UI can have.
_MOST_BYTES = 16 * MIB


class EngineLog:
    """Written by the pump thread, read by anybody in a thread; tails belong to the event loop."""

    def __init__(
        self, file: Path, engine_id: str, model: str, *, limit_bytes: int = 256 * MIB
    ) -> None:
        self.file = file
        self._store = LogStore(file, limit_bytes)
        self._engine_id = engine_id
        self._model = model
        self._tails: set[LogTail] = set()
        self._match_tails: set[MatchTail] = set()
        self._closed = False

    @property
    def line_count(self) -> int:
        """Lines so far, with those that are no longer kept."""
        return self._store.total_lines

    @property
    def index_bytes(self) -> int:
        """Memory that finding lines takes."""
        return self._store.index_bytes

    def append(self, lines: list[bytes]) -> int:
        """Write lines (pump thread); returns the number of the first one.

        Lines that a full disk does not take have their numbers, but are lost.
        """
        return self._store.append(lines)

    def end_writing(self) -> None:
        """Close the file (pump thread)."""
        self._store.close()

    def window(self, first_line: int, count: int, most_bytes: int = _MOST_BYTES) -> LogWindow:
        """`count` lines from `first_line` on, counted from 1 (blocks: call it in a thread).

        It ends early where lines are no longer kept, or after `most_bytes`. Where `first_line` is
        no longer kept it begins at the next one that is.
        """
        asked = first = max(min(first_line, self.line_count + 1), 1)
        lines: list[bytes] = []
        while len(lines) < count and most_bytes > 0:
            block = self._store.block_from(first + len(lines))
            if block is None or (lines and block.first_line > first + len(lines)):
                break
            if not lines:
                first = max(first, block.first_line)
            more = block.lines(first + len(lines), first + count)
            most_bytes -= sum(map(len, more))
            lines += more
        return self._window(first, lines, skipped=first - asked)

    def last(self, count: int, before: int | None = None) -> LogWindow:
        """The last `count` lines, or those before line `before` (blocks: call it in a thread).

        It begins late where lines are no longer kept.
        """
        end = self.line_count + 1
        end = first = end if before is None else max(min(before, end), 1)
        pages: list[list[bytes]] = []
        size = skipped = 0
        while end - first < count and size < _MOST_BYTES:
            block = self._store.block_before(first)
            if block is None:
                break
            if block.end_line < first:
                if pages:
                    skipped = first - block.end_line
                    break
                end = first = block.end_line
            pages.append(block.lines(end - count, first))
            first -= len(pages[-1])
            size += sum(map(len, pages[-1]))
        lines = [line for page in reversed(pages) for line in page]
        return self._window(first, lines, skipped=skipped)

    def search(self, keep: LogFilter, first_line: int, count: int) -> LogMatches:
        """Up to `count` matches from `first_line` on, as many as are found in a short time."""
        return self.matches(search_from(self._store, keep, first_line, count))

    def search_back(self, keep: LogFilter, count: int, before: int | None = None) -> LogMatches:
        """The last `count` matches (before line `before`), as many as are found so fast."""
        end = self.line_count + 1 if before is None else before
        return self.matches(search_before(self._store, keep, end, count))

    def tail(self, next_line: int | None = None) -> LogTail:
        """Follow from line `next_line` on, or from now on; hand it back with `untail`."""
        tail = LogTail(next_line)
        if self._closed:
            tail.close()
        else:
            self._tails.add(tail)
        return tail

    def tail_matches(self, keep: LogFilter, next_line: int | None = None) -> MatchTail:
        """As `tail`, for the lines that a filter keeps."""
        tail = MatchTail(keep, next_line)
        if self._closed:
            tail.close()
        else:
            self._match_tails.add(tail)
        return tail

    def untail(self, tail: LogTail | MatchTail) -> None:
        """Stop following."""
        if isinstance(tail, LogTail):
            self._tails.discard(tail)
        else:
            self._match_tails.discard(tail)

    def deliver(self, first_line: int, lines: list[str]) -> None:
        """Hand new lines to the tails (event loop)."""
        for tail in self._tails:
            tail.put(first_line, lines)
        if self._match_tails:
            data = "\n".join([*lines, ""]).encode(errors="replace")
            block = Block(first_line, first_line + len(lines), data)
            for match_tail in self._match_tails:
                match_tail.put(block)

    def close(self) -> None:
        """No more lines will come (event loop)."""
        self._closed = True
        for tail in (*self._tails, *self._match_tails):
            tail.close()
        self._tails.clear()
        self._match_tails.clear()

    def matches(self, found: Found) -> LogMatches:
        """What was found, for a client."""
        return LogMatches(
            engine_id=self._engine_id,
            model=self._model,
            total_lines=self.line_count,
            matches=[
                LogMatch(line=number, text=text)
                for (number, _), text in zip(
                    found.lines, texts([line for _, line in found.lines]), strict=True
                )
            ],
            scanned_from=found.scanned_from,
            scanned_to=found.scanned_to,
            is_complete=found.is_complete,
            skipped=found.skipped,
        )

    def _window(self, first_line: int, lines: list[bytes], *, skipped: int) -> LogWindow:
        return LogWindow(
            engine_id=self._engine_id,
            model=self._model,
            first_line=first_line,
            total_lines=self.line_count,
            lines=texts(lines),
            skipped=skipped,
        )


def remove_log(file: Path) -> None:
    """Remove the log of one attempt, with all its files."""
    for other in file.parent.glob(f"{glob.escape(file.name)}.*"):
        if other.name.removeprefix(f"{file.name}.").isdecimal():
            other.unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def start_pump(
    pipe: int,
    log: EngineLog,
    loop: asyncio.AbstractEventLoop,
    on_lines: OnLines,
    *,
    on_update: OnUpdate | None = None,
) -> threading.Thread:
    """Read `pipe` to its end in a thread, write the log, hand the lines to the event loop.

    `on_update` gets the states of progress bars that have not ended; they are not in the log.
    """
    handover = Handover(loop, on_lines, on_update)

    def pump() -> None:
        folder = LineFolder()
        try:
            while output := _read(pipe):
                lines = folder.feed(output)
                handover.put(log.append(lines), lines, folder.unfinished())
            lines = folder.end()
            handover.put(log.append(lines), lines, [])
        finally:
            handover.end()
            log.end_writing()
            os.close(pipe)

    thread = threading.Thread(target=pump, name="engine-log", daemon=True)
    thread.start()
    return thread


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65_536)
    except OSError:
        return b""
