"""The log on the line API: any number of lines, follow that survives resizing, filter, search.

Textual's own log widgets lose the end of the log when the terminal shrinks, and paint twice as
much while a scrollbar moves; so position is shown as text and scrollbars are hidden.
"""

from collections.abc import Sequence
from itertools import chain

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from appliance.protocol.engines import LogMatches
from tui.state.log_buffer import Filter, Level, LogBuffer, LogLine
from tui.state.log_rows import LogRows, Wanted
from tui.state.log_search import EarlierMatches
from tui.text.fit import width_of

_LEVELS = {Level.WARNING: "log--warning", Level.ERROR: "log--error", Level.DEBUG: "log--debug"}


class LogView(ScrollView, can_focus=True, inherit_bindings=False):
    """Shows a LogBuffer. The cursor is the last line while following."""

    COMPONENT_CLASSES = {  # noqa: RUF012
        "log--warning",
        "log--error",
        "log--debug",
        "log--gap",
        "log--match",
        "log--cursor",
        "log--range",
    }

    class Moved(Message):
        """Position, follow, wrap, filter or content changed."""

    class AtTop(Message):
        """The oldest line held is in sight."""

    def __init__(self, *, rule: str = "─", id: str | None = None) -> None:
        super().__init__(id=id)
        self.buffer = LogBuffer()
        self.earlier = EarlierMatches()
        self.follow = True
        self.cursor = 0
        self.mark: int | None = None
        self.last_filter: Filter | None = None
        self._rows = LogRows()
        self._rule = rule
        self._seen_dropped = 0
        self._dim = False
        self._height = 0

    @property
    def is_wrapped(self) -> bool:
        """Long lines take several rows."""
        return self._rows.wrap_width is not None

    @property
    def filter(self) -> Filter | None:
        """What hides lines now."""
        return self._rows.filter

    @property
    def shown(self) -> list[LogLine]:
        """The lines that pass the filter."""
        return self._rows.lines

    @property
    def looked_from(self) -> int:
        """The oldest line that the filter was tried on."""
        first = self.buffer.first_number
        return min(first, self.earlier.scanned_from or first)

    @property
    def current(self) -> LogLine | None:
        """The line under the cursor."""
        lines = self._rows.lines
        if not lines:
            return None
        return lines[-1] if self.follow else lines[min(self.cursor, len(lines) - 1)]

    def set_dim(self, dim: bool) -> None:
        """Dim the log while the link is down."""
        if dim != self._dim:
            self._dim = dim
            self.refresh()

    def reset(self) -> None:
        """Another engine: start empty and follow."""
        self.buffer.clear()
        self.earlier.clear()
        self.follow, self.cursor, self.mark = True, 0, None
        self._relayout()

    def added(self, lines: Sequence[LogLine]) -> None:
        """`lines` were appended to the buffer."""
        if self.buffer.dropped != self._seen_dropped:
            self._seen_dropped = self.buffer.dropped
            # They no longer join what is held.
            self.earlier.clear()
            self._relayout()
            return
        before = self._rows.height
        self._rows.extend(lines)
        self._resize_content()
        if self.follow:
            self._to_end()
        elif before < self.scroll_offset.y + self.size.height:
            self.refresh()
        self.post_message(self.Moved())

    def set_stopped(self, is_stopped: bool) -> None:
        """The engine was ended on purpose: its last words are no errors."""
        if self.buffer.set_stopped(is_stopped):
            self._relayout()

    def prepended(self) -> None:
        """Older lines were put before the others."""
        self.earlier.end_before(self.buffer.first_number)
        self._relayout()

    def take_earlier(self, found: LogMatches) -> int:
        """Matches among lines that are not held; returns how many pass the filter."""
        if self.filter is None:
            return 0
        taken = self.earlier.take(found, self.filter)
        if taken:
            self._relayout()
        else:
            self.post_message(self.Moved())
        return taken

    def set_filter(self, wanted: Filter | None) -> None:
        """Hide the lines that do not pass; remembers the filter for searching."""
        self.last_filter = wanted or self.last_filter
        place = self._place()
        self.earlier.clear()
        self._rows.filter = wanted
        self._relayout(place)

    def toggle_wrap(self) -> None:
        """Long lines on several rows, or cut."""
        place = self._place()
        self._rows.wrap_width = None if self.is_wrapped else max(self.size.width, 1)
        self._relayout(place)
        if not self.follow:
            self._reveal(is_centred=True)

    def set_follow(self, follow: bool) -> None:
        """Stay at the end, or where it is."""
        if self.follow and not follow:
            self.cursor = max(0, len(self._rows.lines) - 1)
        self.follow = follow
        if follow:
            self._to_end()
        self.refresh()
        self.post_message(self.Moved())

    def move(self, lines: int) -> None:
        """Move the cursor; reaching for what is above the first line asks for more."""
        if not self._rows.lines:
            return
        self.set_cursor((len(self._rows.lines) - 1 if self.follow else self.cursor) + lines)

    def set_cursor(self, index: int) -> None:
        """Put the cursor on a line and bring it into sight."""
        last = len(self._rows.lines) - 1
        self.cursor = max(0, min(index, last))
        self.follow = False
        self._reveal()
        self.refresh()
        self.post_message(self.Moved())
        if index <= 0:
            self.post_message(self.AtTop())

    def go_to_line(self, number: int) -> None:
        """Put the cursor on line `number`, in the middle of the view."""
        if not self._rows.lines:
            return
        self.set_cursor(self._rows.index_of(number))
        self._centre()

    def search(self, step: int, wanted: Wanted) -> bool:
        """Go to the next line that is wanted; False: there is none.

        From the end of a followed log every search looks back.
        """
        start = len(self._rows.lines) if self.follow else self.cursor
        found = self._rows.find(start, -1 if self.follow else step, wanted)
        if found is None:
            return False
        is_near = self._is_in_sight(found, self.size.height)
        self.set_cursor(found)
        if not is_near:
            self._centre()
        return True

    def toggle_mark(self) -> None:
        """Start a range at the cursor, or drop it."""
        if self.mark is not None:
            self.mark = None
        elif self._rows.lines:
            self.set_follow(False)
            self.mark = self.cursor
        self.refresh()

    def copy_text(self) -> str:
        """The marked range, else the current line."""
        if self.mark is None:
            return self.current.text if self.current else ""
        first, last = sorted((self.mark, self.cursor))
        return "\n".join(line.text for line in self._rows.lines[first : last + 1])

    def render_line(self, y: int) -> Strip:
        """One row."""
        row = self.scroll_offset.y + y
        if row >= self._rows.height:
            return Strip.blank(self.size.width, self.rich_style)
        index, text = self._rows.text_at(row)
        line = self._rows.lines[index]
        base = self._row_style(index, line)
        if line.gap:
            return Strip([Segment(self._gap_text(line), base)], self.size.width)
        left = 0 if self.is_wrapped else self.scroll_offset.x
        strip = Strip(self._segments(text, base))
        return strip.crop_extend(left, left + self.size.width, base)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Tell that the position changed."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Moved())

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Looking back ends following; at the top it asks for older lines."""
        if self.follow and self._rows.height > self.size.height:
            self.set_follow(False)
        if self.scroll_offset.y == 0:
            self.post_message(self.AtTop())

    def on_resize(self) -> None:
        """Another size: wrap again, and stay at the end when following."""
        before, self._height = self._height, self.size.height
        is_near = not self.follow and self._is_in_sight(self.cursor, before)
        if self.is_wrapped and self._rows.wrap_width != self.size.width:
            place = self._place()
            self._rows.wrap_width = max(self.size.width, 1)
            self._relayout(place)
        elif self.follow:
            self._to_end()
        if is_near:
            self._reveal()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the clicked line."""
        if self._rows.lines:
            self.set_cursor(self._rows.at_row(self.scroll_offset.y + event.y))

    def _place(self) -> tuple[int, int]:
        """Numbers of the line under the cursor and of the top line."""
        lines = self._rows.lines
        if not lines:
            return 1, 1
        cursor = lines[min(self.cursor, len(lines) - 1)]
        return cursor.number, lines[self._rows.at_row(self.scroll_offset.y)].number

    def _relayout(self, place: tuple[int, int] | None = None) -> None:
        """Lay out all lines again and stay at a place."""
        cursor, top = place or self._place()
        self._rows.rebuild(chain(self.earlier.lines, self.buffer.lines))
        self.mark = None
        self._resize_content()
        if self.follow or not self._rows.lines:
            self._to_end()
        else:
            self.cursor = self._rows.index_of(cursor)
            row = self._rows.row_of(self._rows.index_of(top))
            self._go(row)
        self.refresh()
        self.post_message(self.Moved())

    def _is_in_sight(self, index: int, height: int) -> bool:
        """True where a line is in a view of some height with all its rows."""
        if not 0 <= index < len(self._rows.lines):
            return False
        row, top = self._rows.row_of(index), self.scroll_offset.y
        return top <= row and row + self._rows.rows_of(index) <= top + height

    def _reveal(self, *, is_centred: bool = False) -> None:
        """Scroll as little as shows the whole current line, or put it in the middle."""
        if not self._rows.lines or self._is_in_sight(self.cursor, self.size.height):
            return
        row, rows = self._rows.row_of(self.cursor), self._rows.rows_of(self.cursor)
        if is_centred:
            self._centre()
        elif row < self.scroll_offset.y or rows >= self.size.height:
            self._go(row)
        else:
            self._go(row + rows - self.size.height)

    def _centre(self) -> None:
        """The current line in the middle; of one that is too long, its beginning."""
        row, rows = self._rows.row_of(self.cursor), self._rows.rows_of(self.cursor)
        self._go(max(0, row - max(0, self.size.height - rows) // 2))

    def _resize_content(self) -> None:
        width = self.size.width if self.is_wrapped else self._rows.longest
        self.virtual_size = Size(width, self._rows.height)

    def _go(self, row: int) -> None:
        # Forced: Textual allows scrolling only from the layout after the content grew.
        self.scroll_to(y=row, animate=False, immediate=True, force=True)

    def _to_end(self) -> None:
        end = max(0, self._rows.height - self.size.height)
        if end != self.scroll_offset.y:
            self._go(end)
        self.refresh(Region(0, 0, self.size.width, self.size.height))

    def _row_style(self, index: int, line: LogLine) -> Style:
        name = "log--gap" if line.gap else _LEVELS.get(line.level)
        style = self.get_component_rich_style(name) if name else self.rich_style
        if not self.follow and index == self.cursor:
            style += _ground(self.get_component_rich_style("log--cursor"))
        elif self._in_range(index):
            style += _ground(self.get_component_rich_style("log--range"))
        return style + Style(dim=True) if self._dim else style

    def _in_range(self, index: int) -> bool:
        if self.mark is None:
            return False
        first, last = sorted((self.mark, self.cursor))
        return first <= index <= last

    def _segments(self, text: str, base: Style) -> list[Segment]:
        wanted = self._rows.filter or self.last_filter
        if wanted is None or wanted.inverted:
            return [Segment(text, base)]
        match = base + self.get_component_rich_style("log--match", partial=True)
        segments, end = [], 0
        for found in wanted.pattern.finditer(text):
            if found.end() > found.start():
                segments.append(Segment(text[end : found.start()], base))
                segments.append(Segment(found[0], match))
                end = found.end()
        return [*segments, Segment(text[end:], base)]

    def _gap_text(self, line: LogLine) -> str:
        said, why = "skipped", ": this terminal could not keep up (kept on the server)"
        if line.is_dropped:
            said, why = "were dropped", " (no longer kept on the server)"
        said = f" {line.gap:,} lines {said}"
        said += f"{why} " if width_of(said + why) < self.size.width - 4 else " "
        return said.center(self.size.width, self._rule)[: self.size.width]


def _ground(style: Style) -> Style:
    """The background of a style; where a theme has none to give, reverse video."""
    if style.bgcolor is None or style.bgcolor.is_default:
        return Style(reverse=True)
    return Style(bgcolor=style.bgcolor)
