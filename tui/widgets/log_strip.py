"""The newest log lines of one model, under a large dashboard."""

from appliance.protocol.engines import LogWindow
from tui.state.log_buffer import Level, LogBuffer, LogLine
from tui.text.fit import shorten
from tui.text.rows import Row, Span
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look, rule_row

KEPT = 200
_STYLES = {Level.ERROR: "error", Level.WARNING: "busy", Level.DEBUG: "muted", Level.INFO: ""}


class LogStrip:
    """A small tail; the log screen has the rest."""

    def __init__(self) -> None:
        self._buffer = LogBuffer(KEPT)
        self.engine: str | None = None
        self.model = ""
        self._second: int | None = None
        self._lines: list[LogLine] = []

    def open(self, engine: str | None, model: str) -> None:
        """Another log."""
        self._buffer.clear()
        self._lines = []
        self.engine, self.model = engine, model

    def set_stopped(self, is_stopped: bool) -> None:
        """Whether the engine was ended on purpose."""
        if self._buffer.set_stopped(is_stopped):
            self._second = None

    def take(self, window: LogWindow) -> bool:
        """New lines; True for the first ones."""
        is_first = not self._buffer.lines
        if is_first:
            self._second = None
        self._buffer.append(window)
        del self._buffer.lines[:-KEPT]
        return is_first

    def rows(self, look: Look, width: int, room: int) -> list[Row]:
        """The rule and the newest lines that fit."""
        title = f"Log of {sanitize_line(self.model)}" if self.model else "Log"
        rows = [rule_row(look, width, title, "l opens it")]
        if self.engine is None:
            return [*rows, (Span("   nothing has run yet", "muted"),)]
        # A busy log, painted more often than once a second, would cost more than all the rest.
        second = int(look.clock.monotonic())
        if second != self._second:
            self._second = second
            self._lines = [line for line in self._buffer.lines if not line.gap]
        for line in self._lines[-max(room - 1, 1) :]:
            shown = shorten(f" {line.text}", width, ellipsis=look.glyphs.ellipsis)
            rows.append((Span(shown, _STYLES[line.level]),))
        return rows
