"""What the command prints: tables for people, JSON for programs, nothing that steers a terminal."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

# Everything that could move the cursor or change the terminal: C0 but tab, DEL, C1, bidi marks.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SEQUENCE = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_].*?(?:\x07|\x1b\\\\)|[@-_])", re.DOTALL
)

_BAR = 20
"""Characters of a progress bar."""


def safe(text: str) -> str:
    """Text of others, without escape sequences and control characters."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def safe_lines(text: str) -> str:
    """As `safe`, but line breaks stay."""
    return "\n".join(safe(line) for line in text.split("\n"))


def progress_bar(ratio: float) -> str:
    """For the error stream, in characters that it can take; `ratio` is 0 to 1."""
    done = int(ratio * _BAR)
    full, empty = "━─" if (sys.stderr.encoding or "").lower().startswith("utf") else "#-"
    return full * done + empty * (_BAR - done)


def print_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, without a frame."""
    cells = [[safe(cell) for cell in row] for row in rows]
    widths = [
        max(len(heading), *(len(row[column]) for row in cells)) if cells else len(heading)
        for column, heading in enumerate(headings)
    ]
    for row in [list(headings), *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
