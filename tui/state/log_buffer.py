"""The log lines that the interface holds: a ring, its gaps, filter and search."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from appliance.protocol.engines import LogWindow
from tui.text.sanitize import sanitize, sanitize_line

CAPACITY = 50_000
_SPARE = 5_000


class Level(StrEnum):
    """How loud a line is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_ERROR = Level.ERROR
# Parts of a regular expression that stand for any text, and what makes it hard to read.
_ANYTHING = re.compile(r"\.[*+]?\??|[\^$]")
_HARD = re.compile(r"[\\|()\[\]{}?*+]")
_WORD = re.compile(r"\b(DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b")
_FAILURE = re.compile(r"^\s*(\([^)]*\)\s*)?(Traceback \(|[\w.]*(Error|Exception)\b: )")
_LEVELS = {
    "DEBUG": Level.DEBUG,
    "INFO": Level.INFO,
    "WARN": Level.WARNING,
    "WARNING": Level.WARNING,
}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `number` counts from 1 in the engine's log; a gap has `gap` lines in its place."""

    number: int
    text: str
    level: Level = Level.INFO
    gap: int = 0
    is_dropped: bool = False
    """Of a gap: the server keeps these lines no longer."""


def level_of(text: str) -> Level:
    """The level that a line states near its start, or a failure that it names."""
    if found := _WORD.search(text[:120]):
        return _LEVELS.get(found[1], Level.ERROR)
    return Level.ERROR if _FAILURE.search(text) else Level.INFO


def ends_by_order(text: str) -> bool:
    """True where vLLM reports that its engine is gone, as it does when it is stopped."""
    return "EngineDeadError" in text or "AsyncLLM output_handler failed" in text


class FilterError(ValueError):
    """A filter that is no regular expression."""


@dataclass(frozen=True)
class Filter:
    """A regular expression; a leading `!` keeps the lines that do not match."""

    source: str
    pattern: re.Pattern[str]
    inverted: bool

    def keeps(self, line: LogLine) -> bool:
        """True where a line stays; gaps always stay."""
        return bool(line.gap) or (self.pattern.search(line.text) is None) == self.inverted

    @property
    def needle(self) -> str:
        """Text that all lines contain which it keeps, in some case; empty where none is known."""
        parts = _ANYTHING.split(self.pattern.pattern)
        if self.inverted or any(map(_HARD.search, parts)):
            return ""
        # The server does not know about the case of other letters.
        return max(filter(str.isascii, parts), key=len, default="")


def parse_filter(source: str) -> Filter | None:
    """The filter that a person wrote; None for nothing. Raises FilterError."""
    inverted = source.startswith("!")
    expression = source[1:] if inverted else source
    if not expression:
        return None
    flags = re.NOFLAG if any(c.isupper() for c in expression) else re.IGNORECASE
    try:
        return Filter(source, re.compile(expression, flags), inverted)
    except re.error as error:
        raise FilterError(f"{error}") from error


class LogBuffer:
    """Up to 50,000 lines of one engine's log, in order; the oldest go first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self.lines: list[LogLine] = []
        self.total = 0
        """Lines in the engine's log, as last told."""
        self.dropped = 0
        """Entries removed from the front since the start; lets a view keep its place."""
        self._is_stopped = False
        self._end = 0

    @property
    def first_number(self) -> int:
        """Number of the oldest line held; 1 when the buffer is empty."""
        return next((line.number for line in self.lines if not line.gap), 1)

    @property
    def last_number(self) -> int:
        """Number of the newest line held; 0 when the buffer is empty."""
        return self.lines[-1].number if self.lines else 0

    @property
    def is_full(self) -> bool:
        """No older line fits."""
        return len(self.lines) >= self._capacity

    def append(self, window: LogWindow) -> list[LogLine]:
        """Add newer lines; returns what was added, with a gap where lines are missing."""
        self.total = max(self.total, window.total_lines)
        known = self.last_number
        added: list[LogLine] = []
        missing = window.first_line - known - 1 if self.lines else 0
        if gap := max(window.skipped, missing):
            # At the start of what is held nothing was missed: there is no more to have.
            is_dropped = not self.lines
            added.append(LogLine(window.first_line - 1, "", gap=gap, is_dropped=is_dropped))
        added.extend(line for line in _lines_of(window) if not self.lines or line.number > known)
        if self._is_stopped:
            added = self._calmed(added)
        self.lines.extend(added)
        self._drop_oldest()
        return added

    def prepend(self, window: LogWindow) -> int:
        """Add older lines; returns how many. What lies between them and the others is dropped."""
        self.total = max(self.total, window.total_lines)
        first = self.first_number if self.lines else window.total_lines + 1
        older = [line for line in _lines_of(window) if line.number < first]
        is_whole = len(older) <= self._capacity - len(self.lines)
        older = older[max(0, len(older) - (self._capacity - len(self.lines))) :]
        if not older:
            return 0
        if self.lines and self.lines[0].gap:
            del self.lines[0]
        skipped = window.skipped if is_whole else 0
        self.lines[:0] = [
            *_dropped(window.first_line, skipped),
            *older,
            *_dropped(first, first - older[-1].number - 1),
        ]
        if self._is_stopped:
            self.lines = self._calmed(self.lines)
        return len(older)

    def set_stopped(self, is_stopped: bool) -> bool:
        """The engine was ended on purpose: what it says from then on is no error.

        True where that changed a line.
        """
        if is_stopped == self._is_stopped:
            return False
        self._is_stopped = is_stopped
        if not is_stopped:
            return False
        before, self.lines = self.lines, self._calmed(self.lines)
        return before is not self.lines

    def clear(self) -> None:
        """Forget everything."""
        self.lines.clear()
        self.total = 0
        self.dropped = 0
        self._is_stopped = False
        self._end = 0

    def _calmed(self, lines: list[LogLine]) -> list[LogLine]:
        """The same lines without the errors of the end; the very same list where none is."""
        ends = [line.number for line in lines if line.level is _ERROR and ends_by_order(line.text)]
        if ends and not 0 < self._end <= ends[0]:
            self._end = ends[0]
        if not self._end or not lines or lines[-1].number < self._end:
            return lines
        return [
            replace(line, level=Level.INFO)
            if line.level is _ERROR and line.number >= self._end
            else line
            for line in lines
        ]

    def _drop_oldest(self) -> None:
        # Dropping in blocks keeps the price of a long-lived tail constant.
        if len(self.lines) > self._capacity + _SPARE:
            surplus = len(self.lines) - self._capacity
            del self.lines[:surplus]
            self.dropped += surplus


def line_of(number: int, raw: str) -> LogLine:
    """A line as the server sent it, fit to be shown."""
    text = sanitize_line(sanitize(raw).expandtabs(4))
    return LogLine(number, text, level_of(text))


def _lines_of(window: LogWindow) -> Iterable[LogLine]:
    for number, raw in enumerate(window.lines, start=window.first_line):
        yield line_of(number, raw)


def _dropped(before: int, count: int) -> list[LogLine]:
    """A gap of `count` lines before line `before`; nothing for none."""
    return [LogLine(before - 1, "", gap=count, is_dropped=True)] if count > 0 else []
