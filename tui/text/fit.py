"""Fitting text into cells of the terminal, wide characters included."""

from rich.cells import cell_len, set_cell_size


def width_of(text: str) -> int:
    """Cells that `text` takes."""
    return cell_len(text)


def fit(text: str, width: int, *, ellipsis: str = "…") -> str:
    """Exactly `width` cells: padded on the right, or cut with an ellipsis."""
    return set_cell_size(shorten(text, width, ellipsis=ellipsis), max(width, 0))


def fit_right(text: str, width: int) -> str:
    """Exactly `width` cells, padded on the left."""
    missing = width - cell_len(text)
    return " " * missing + text if missing >= 0 else set_cell_size(text, max(width, 0))


def shorten(text: str, width: int, *, ellipsis: str = "…") -> str:
    """At most `width` cells; the end goes."""
    if cell_len(text) <= width:
        return text
    if width <= len(ellipsis):
        return ellipsis[: max(width, 0)]
    return set_cell_size(text, width - len(ellipsis)).rstrip() + ellipsis


def shorten_middle(text: str, width: int, *, ellipsis: str = "…") -> str:
    """At most `width` cells; the middle goes, for names differ at both ends."""
    if cell_len(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 2:
        return shorten(text, width, ellipsis=ellipsis)
    tail = room // 2
    end = text[-tail:]
    while cell_len(end) > tail:
        end = end[1:]
    return set_cell_size(text, room - cell_len(end)).rstrip() + ellipsis + end


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken at spaces where there are some."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            rest = word
            joined = f"{line} {word}" if line else word
            if cell_len(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while cell_len(rest) > width:
                head = set_cell_size(rest, width).rstrip() or rest[:1]
                lines.append(head)
                rest = rest[len(head) :]
            line = rest
        lines.append(line)
    return lines


def cut_cells(text: str, width: int) -> list[str]:
    """Pieces of at most `width` cells, as a terminal would wrap them; at least one."""
    if len(text) <= width and cell_len(text) <= width:
        return [text]
    if text.isascii():
        return [text[start : start + width] for start in range(0, len(text), width)]
    pieces: list[str] = []
    piece, used = "", 0
    for character in text:
        size = cell_len(character)
        if used + size > width and piece:
            pieces.append(piece)
            piece, used = "", 0
        piece += character
        used += size
    return [*pieces, piece]
