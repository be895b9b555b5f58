"""The widget that paints rows, and only the cells that changed."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.text.fit import width_of
from tui.text.rows import Row
from tui.theme import STYLE_NAMES

DIM = Style(dim=True)


class LinePanel(Widget):
    """Paints rows; `show` compares with the last picture and repaints the difference."""

    COMPONENT_CLASSES = {f"row--{name}" for name in STYLE_NAMES}  # noqa: RUF012

    class Picked(Message):
        """A row was clicked."""

        def __init__(self, panel: "LinePanel", row: int) -> None:
            super().__init__()
            self.panel = panel
            self.row = row

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[Row] = []
        self._dim = False

    def show(self, rows: Sequence[Row], *, dim: bool = False) -> None:
        """Paint `rows` from the top; `dim` for a picture that may be old."""
        old, self._rows = self._rows, list(rows)
        if dim != self._dim:
            self._dim = dim
            self.refresh()
            return
        if len(old) != len(rows) and self.styles.height is not None and self.styles.is_auto_height:
            self.refresh(layout=True)
            return
        regions = [
            region
            for line in range(max(len(old), len(rows)))
            if (region := self._difference(old, line)) is not None
        ]
        if regions:
            self.refresh(*regions)

    @property
    def text(self) -> list[str]:
        """The painted text, line by line."""
        return ["".join(span.text for span in row) for row in self._rows]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as there are rows."""
        return len(self._rows)

    def render_line(self, y: int) -> Strip:
        """One line of the picture."""
        base = self.rich_style
        row = self._rows[y] if y < len(self._rows) else ()
        segments = [Segment(span.text, self.style_for(span.style)) for span in row if span.text]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def style_for(self, name: str) -> Style:
        """The style of a name, on this widget's own."""
        style = self.rich_style
        if name:
            style += self.get_component_rich_style(f"row--{name}", partial=True)
        return style + DIM if self._dim else style

    def on_click(self, event: events.Click) -> None:
        """Tell which row was clicked."""
        self.post_message(self.Picked(self, event.y))

    def _difference(self, old: list[Row], line: int) -> Region | None:
        before = old[line] if line < len(old) else ()
        after = self._rows[line] if line < len(self._rows) else ()
        if before == after:
            return None
        same = 0
        for span, other in zip(before, after, strict=False):
            if span != other:
                break
            same += width_of(span.text)
        end = self.size.width
        if sum(width_of(s.text) for s in before) == sum(width_of(s.text) for s in after):
            end = sum(width_of(s.text) for s in after)
            for span, other in zip(reversed(before), reversed(after), strict=False):
                if span != other or end <= same:
                    break
                end -= width_of(span.text)
        return Region(same, line, max(end - same, 1), 1)
