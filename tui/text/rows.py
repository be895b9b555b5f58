"""Rows: lines of styled text, before any widget knows of them."""

from collections.abc import Iterable
from typing import NamedTuple

from tui.text.fit import cut_cells, width_of


class Span(NamedTuple):
    """A piece of a row in one style; style names are those of `tui.theme`."""

    text: str
    style: str = ""


Row = tuple[Span, ...]


def row_width(row: Iterable[Span]) -> int:
    """Cells that a row takes."""
    return sum(width_of(span.text) for span in row)


def crop_row(row: Row, width: int) -> Row:
    """The first `width` cells of a row."""
    spans: list[Span] = []
    left = width
    for span in row:
        size = width_of(span.text)
        if size >= left:
            spans.append(Span(cut_cells(span.text, left)[0] if left > 0 else "", span.style))
            break
        spans.append(span)
        left -= size
    return tuple(spans)


def pad_row(row: Row, width: int) -> Row:
    """A row of exactly `width` cells."""
    used = row_width(row)
    if used > width:
        return crop_row(row, width)
    return (*row, Span(" " * (width - used))) if used < width else row


def spread(left: Row, right: Row, width: int) -> Row:
    """`left` at the left edge and `right` at the right edge of one row; the left side gives way."""
    room = width - row_width(right)
    return (*pad_row(left, max(room, 0)), *right)


def text_of(row: Iterable[Span]) -> str:
    """The text alone."""
    return "".join(span.text for span in row)
