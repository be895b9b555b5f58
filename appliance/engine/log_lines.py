"""Lines from what an engine writes. Progress bars, which move by carriage returns, become one line.

Pure: the result does not depend on how the output is cut into reads.
"""

import re

LONGEST_LINE = 16_384
_MOST_BARS = 64

# What counts: `50%|`, `3/17 [`, `12it [`, `1.2MB`, `8 s`.
_COUNTER = re.compile(rb"\d%|\d/\d|\dit\b|\d ?[kMGT]?i?B\b|\d ?s\b")
# What is counted: the text before the first number, with the name of the process.
_TITLE = re.compile(rb"\s*(?:\([^)]*\))?[^\d]*")


class LineFolder:
    """Takes output as it is read; gives complete lines, and where unfinished bars stand.

    Of the states of a bar within one line the last one becomes a line. Other text that a carriage
    return ends is a line of its own.
    """

    def __init__(self) -> None:
        self._rest = b""
        # A carriage return at the end of a read may belong to a line end.
        self._is_returning = False
        self._has_returned = False
        self._bars: dict[bytes, bytes] = {}
        self._moved: dict[bytes, bytes] = {}

    def feed(self, output: bytes) -> list[bytes]:
        """The lines that this completes, without blank ones."""
        self._moved = {}
        data = self._rest + (b"\r" if self._is_returning else b"") + output
        self._is_returning = data.endswith(b"\r")
        if self._is_returning:
            data = data[:-1]
        *ended, rest = data.replace(b"\r\n", b"\n").split(b"\n")
        lines: list[bytes] = []
        if self._bars or b"\r" in data:
            for text in ended:
                self._end_line(text, lines)
        elif ended:
            self._has_returned = False
            lines = [cut for text in ended if (cut := text[:LONGEST_LINE]).strip()]
        *states, self._rest = rest.split(b"\r")
        for state in states:
            self._note(state, lines)
        self._has_returned |= bool(states)
        self._rest = self._rest[:LONGEST_LINE]
        return lines

    def unfinished(self) -> list[str]:
        """The bars of the line that has not ended, as far as the last read moved them."""
        moved = dict(self._moved)
        title = _title(self._rest) if self._has_returned or self._is_returning else None
        if title is not None:
            moved[title] = self._rest
        return [state.decode(errors="replace") for state in moved.values()]

    def end(self) -> list[bytes]:
        """The lines that are left at the end of the output."""
        lines: list[bytes] = []
        self._end_line(self._rest, lines)
        self._rest = b""
        return lines

    def _end_line(self, text: bytes, lines: list[bytes]) -> None:
        *states, last = text.split(b"\r")
        for state in states:
            self._note(state, lines)
        last = last[:LONGEST_LINE]
        if self._bars and _title(last) is not None:
            self._note(last, lines)
            last = b""
        lines.extend(self._bars.values())
        self._bars.clear()
        if last.strip():
            lines.append(last)
        self._moved = {}
        self._has_returned = False

    def _note(self, state: bytes, lines: list[bytes]) -> None:
        state = state[:LONGEST_LINE]
        if not state.strip():
            return
        title = _title(state)
        if title is None:
            lines.append(state)
            return
        self._bars.pop(title, None)
        self._bars[title] = self._moved[title] = state
        if len(self._bars) > _MOST_BARS:
            lines.append(self._bars.pop(next(iter(self._bars))))


def _title(state: bytes) -> bytes | None:
    """What a progress bar counts; None: it is no bar."""
    if _COUNTER.search(state) is None:
        return None
    title = _TITLE.match(state)
    return title[0].strip() if title else b""
