"""How to draw, and small rows that every panel uses."""

from dataclasses import dataclass
from datetime import datetime

from tui.state.clock import Clock
from tui.text.glyphs import Glyphs
from tui.text.rows import Row, Span, crop_row, row_width

TINY_COLUMNS = 60
TINY_ROWS = 15
WIDE_COLUMNS = 120
XWIDE_COLUMNS = 150


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything about the drawing that is not the server's state."""

    glyphs: Glyphs
    clock: Clock
    width: int
    height: int
    can_change: bool = True
    readonly: bool = False

    @property
    def is_tiny(self) -> bool:
        """Too small for anything but one line a device and the models."""
        return self.width < TINY_COLUMNS or self.height < TINY_ROWS

    @property
    def is_wide(self) -> bool:
        """Room for a second column."""
        return self.width >= WIDE_COLUMNS and not self.is_tiny

    def time(self, moment: datetime) -> str:
        """Time of day where the reader is."""
        return f"{self.clock.local(moment):%H:%M:%S}"


def rule_row(look: Look, width: int, title: str, right: str = "") -> Row:
    """A section's top line: `─ title ────── right ─`."""
    return rule_with(look, width, (Span(title, "title"),), (Span(right, "muted"),))


def rule_with(look: Look, width: int, title: Row, right: Row = ()) -> Row:
    """A section's top line with styled titles."""
    rule = look.glyphs.rule
    right_width = row_width(right)
    tail: Row = (Span(" "), *right, Span(f" {rule}", "rule")) if right_width else ()
    title = crop_row(title, max(width - row_width(tail) - 4, 4))
    head: Row = (Span(f"{rule} ", "rule"), *title, Span(" ")) if row_width(title) else ()
    fill = width - row_width(head) - row_width(tail)
    if fill < 1 and tail:
        return rule_with(look, width, title)
    return crop_row((*head, Span(rule * max(fill, 0), "rule"), *tail), width)


def note_row(text: str, style: str = "muted") -> Row:
    """One sentence, indented."""
    return (Span(f"   {text}", style),)
