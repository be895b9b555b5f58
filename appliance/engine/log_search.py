"""Finding lines of a log by their text or level, in steps of bounded time. No state."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from appliance.engine.log_store import Block, LogStore
from appliance.protocol.engines import LogLevel
from appliance.units import MIB

# One step looks at blocks of a quarter of a MiB until this time is over.
_STEP_S = 0.025
_MARKS = 4
_MOST_BYTES = MIB

# Near its start a line of vLLM states its level; other failures begin with their name.
_HEAD = 120
_WORD = re.compile(rb"\b(DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b")
_FAILURE = re.compile(rb"^\s*(\([^)]*\)\s*)?(Traceback \(|[\w.]*(Error|Exception)\b: )")
_ERROR_WORDS = (b"error", b"exception", b"critical", b"fatal", b"traceback (")
_QUIET = (b"DEBUG", b"INFO")
_WARNING = (b"WARN", b"WARNING")

Clock = Callable[[], float]


@dataclass(frozen=True)
class LogFilter:
    """Lines with this text, of this level or worse. The case of ASCII letters does not matter."""

    text: str = ""
    level: LogLevel | None = None

    def find(self, block: Block) -> list[tuple[int, int, int]]:
        """Number, start and end of each line that it keeps, in order."""
        found = []
        number, counted = block.first_line, 0
        for start, end in self._candidates(block.lowered):
            if self.level is not None and not self._is_loud(block.data[start:end]):
                continue
            number += block.data.count(b"\n", counted, start)
            counted = start
            found.append((number, start, end))
        return found

    def _candidates(self, lowered: bytes) -> Iterable[tuple[int, int]]:
        if self.text:
            return _lines_with(lowered, self.text.encode(errors="replace").lower())
        words = _ERROR_WORDS if self.level is LogLevel.ERROR else (*_ERROR_WORDS, b"warn")
        return sorted({line for word in words for line in _lines_with(lowered, word)})

    def _is_loud(self, line: bytes) -> bool:
        if stated := _WORD.search(line[:_HEAD]):
            is_warning = stated[1] in _WARNING
            return stated[1] not in _QUIET and (self.level is LogLevel.WARNING or not is_warning)
        return _FAILURE.search(line) is not None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one step found among the lines from `scanned_from` to before `scanned_to`."""

    lines: list[tuple[int, bytes]]
    scanned_from: int
    scanned_to: int
    is_complete: bool
    skipped: int


def search_from(
    store: LogStore, keep: LogFilter, line: int, count: int, clock: Clock = time.monotonic
) -> Found:
    """Up to `count` lines from `line` on, oldest first; the next step begins at `scanned_to`."""
    start = cursor = max(min(line, store.total_lines + 1), 1)
    step = _Step(count, clock)
    while not step.is_over():
        block = store.block_from(cursor, _MARKS)
        if block is None:
            step.is_complete = True
            break
        step.skipped += max(block.first_line - cursor, 0)
        hits = [hit for hit in keep.find(block) if hit[0] >= cursor]
        taken = step.take(block, hits)
        cursor = block.end_line if taken == len(hits) else hits[taken - 1][0] + 1
    step.is_complete |= cursor > store.total_lines
    return step.found(start, cursor)


def search_before(
    store: LogStore, keep: LogFilter, line: int, count: int, clock: Clock = time.monotonic
) -> Found:
    """The last `count` lines before `line`; the next step ends before `scanned_from`."""
    end = cursor = max(min(line, store.total_lines + 1), 1)
    step = _Step(count, clock)
    while not step.is_over():
        block = store.block_before(cursor, _MARKS)
        if block is None:
            step.is_complete = True
            break
        step.skipped += max(cursor - block.end_line, 0)
        hits = [hit for hit in reversed(keep.find(block)) if hit[0] < cursor]
        taken = step.take(block, hits)
        cursor = block.first_line if taken == len(hits) else hits[taken - 1][0]
    step.is_complete |= cursor <= 1
    step.lines.reverse()
    return step.found(cursor, end)


class _Step:
    """What is found, and whether that is enough for one answer."""

    def __init__(self, count: int, clock: Clock) -> None:
        self.lines: list[tuple[int, bytes]] = []
        self.skipped = 0
        self.is_complete = False
        self._count = count
        self._bytes = 0
        self._clock = clock
        self._deadline: float | None = None

    def is_over(self) -> bool:
        """At least one block is looked at, so that each step gets further."""
        if self._deadline is None:
            self._deadline = self._clock() + _STEP_S
            return self._is_full()
        return self._is_full() or self._clock() >= self._deadline

    def take(self, block: Block, hits: list[tuple[int, int, int]]) -> int:
        """Add hits until it is enough; how many were added."""
        for taken, (number, start, end) in enumerate(hits):
            if self._is_full():
                return taken
            self.lines.append((number, block.data[start:end]))
            self._bytes += end - start
        return len(hits)

    def found(self, scanned_from: int, scanned_to: int) -> Found:
        """The result."""
        return Found(
            lines=self.lines,
            scanned_from=scanned_from,
            scanned_to=scanned_to,
            is_complete=self.is_complete,
            skipped=self.skipped,
        )

    def _is_full(self) -> bool:
        return len(self.lines) >= self._count or self._bytes >= _MOST_BYTES


def _lines_with(lowered: bytes, word: bytes) -> Iterator[tuple[int, int]]:
    at = lowered.find(word)
    while at >= 0:
        end = lowered.find(b"\n", at)
        yield lowered.rfind(b"\n", 0, at) + 1, end
        at = lowered.find(word, end)
