"""Which log lines are shown and where: filter, wrapping, and the rows that they take."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from tui.state.log_buffer import Filter, LogLine
from tui.text.fit import cut_cells


class Wanted:
    """What a search looks for."""

    def __init__(self, accepts: Filter | None = None) -> None:
        self._filter = accepts

    def accepts(self, line: LogLine) -> bool:
        """True for a match; without a filter errors match."""
        if line.gap:
            return False
        if self._filter is not None:
            return self._filter.keeps(line)
        return line.level == "error"


class LogRows:
    """The lines that pass the filter, laid out in rows of a given width."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.filter: Filter | None = None
        self.wrap_width: int | None = None
        """None: one row a line."""
        self.longest = 0
        self._starts: list[int] = []
        self._height = 0

    @property
    def height(self) -> int:
        """Rows of all lines."""
        return self._height

    def rebuild(self, lines: Iterable[LogLine]) -> None:
        """Lay out from the beginning."""
        self.lines = []
        self._starts = []
        self._height = 0
        self.longest = 0
        self.extend(lines)

    def extend(self, lines: Iterable[LogLine]) -> int:
        """Lay out further lines; returns how many pass the filter."""
        before = len(self.lines)
        for line in lines:
            if self.filter is not None and not self.filter.keeps(line):
                continue
            self.lines.append(line)
            if self.wrap_width is None:
                self._height += 1
                self.longest = max(self.longest, len(line.text))
            else:
                self._starts.append(self._height)
                self._height += len(self._cut(line))
        return len(self.lines) - before

    def row_of(self, index: int) -> int:
        """The first row of line `index`."""
        return index if self.wrap_width is None else self._starts[index]

    def rows_of(self, index: int) -> int:
        """How many rows line `index` takes."""
        return 1 if self.wrap_width is None else len(self._cut(self.lines[index]))

    def at_row(self, row: int) -> int:
        """The index of the line at a row, the last one below the end."""
        if self.wrap_width is None:
            return max(0, min(row, len(self.lines) - 1))
        return max(0, bisect_right(self._starts, row) - 1)

    def text_at(self, row: int) -> tuple[int, str]:
        """The index of the line at a row, and the text in that row."""
        index = self.at_row(row)
        line = self.lines[index]
        if self.wrap_width is None:
            return index, line.text
        return index, self._cut(line)[row - self._starts[index]]

    def index_of(self, number: int) -> int:
        """The index of line `number`, or of the next one that is shown."""
        index = bisect_left(self.lines, number, key=lambda line: line.number)
        return max(0, min(index, len(self.lines) - 1))

    def find(self, start: int, step: int, wanted: Wanted) -> int | None:
        """The next line from `start`, in steps of 1 or -1, that is wanted."""
        index = start + step
        while 0 <= index < len(self.lines):
            if wanted.accepts(self.lines[index]):
                return index
            index += step
        return None

    def _cut(self, line: LogLine) -> list[str]:
        return cut_cells(line.text, max(self.wrap_width or 1, 1))
