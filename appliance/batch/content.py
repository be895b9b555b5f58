"""Parts of files: the first line of an upload, the range that a client wants."""

import re
from pathlib import Path

from appliance.batch.lines import is_blank

# Numbers of more digits than any size has are not looked at.
_RANGE = re.compile(r"^bytes=([0-9]{0,18})-([0-9]{0,18})$", re.IGNORECASE)
_FIRST_BYTES = 16 * 1024**2


def first_line(file: Path) -> bytes:
    """The first line that is not blank, empty if there is none. Blocks."""
    read = 0
    with file.open("rb") as source:
        while read < _FIRST_BYTES and (line := source.readline(_FIRST_BYTES)):
            read += len(line)
            line = line.removeprefix(b"\xef\xbb\xbf")
            if not is_blank(line.rstrip(b"\n")):
                return line
    return b""


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of one range of bytes (RFC 9110, 14.1.2); None if it is empty.

    What is not understood, such as several ranges, means the whole file.
    """
    found = _RANGE.match(text.strip()) if text else None
    if found is None or found.groups() == ("", ""):
        return 0, size
    first, last = found.groups()
    if not first:
        return (max(size - int(last), 0), size) if int(last) and size else None
    start = int(first)
    if last and int(last) < start:
        return 0, size
    end = min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None
