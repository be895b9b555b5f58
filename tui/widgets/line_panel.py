"""The widget that paints rows, and only the cells that changed."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
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

    def __init__(self, *, id: str | None = None, grows: bool = False) -> None:
        """`grows`: as high as its rows."""
        super().__init__(id=id)
        self._grows = grows
        self._height = 0
        self._rows: list[Row] = []
        self._dim = False

    def show(self, rows: Sequence[Row], *, dim: bool = False) -> None:
        """Paint `rows` from the top; `dim` for a picture that may be old."""
        old, self._rows = self._rows, list(rows)
        if dim != self._dim:
            self._dim = dim
            self.refresh()
            return
        if self._grows and len(rows) != self._height:
            self._height = len(rows)
            self.styles.height = len(rows)
            self.refresh()
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

    def render_line(self, y: int) -> Strip:
        """One line of the picture."""
        base = self.rich_style
        row = self._rows[y] if y < len(self._rows) else ()
        segments = [Segment(span.text, self.style_for(span.style)) for span in row if span.text]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def style_for(self, name: str) -> Style:
        """The style of a name, on this widget's own."""
        # Not partial: only the whole style has its transparent colours blended.
        style = self.get_component_rich_style(f"row--{name}") if name else self.rich_style
        return style + DIM if self._dim else style

    def on_click(self, event: events.Click) -> None:
        """Tell which row was clicked."""
        self.post_message(self.Picked(self, event.y))

    def _difference(self, old: list[Row], line: int) -> Region | None:
        """From the first changed span to the last: one region a line costs the fewest bytes."""
        before = old[line] if line < len(old) else ()
        after = self._rows[line] if line < len(self._rows) else ()
        if before == after:
            return None
        widths = [width_of(span.text) for span in after]
        widths_before = [width_of(span.text) for span in before]
        if widths != widths_before:
            return Region(0, line, max(sum(widths), sum(widths_before), 1), 1)
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        left = sum(widths[: changed[0]])
        return Region(left, line, max(sum(widths[: changed[-1] + 1]) - left, 1), 1)
