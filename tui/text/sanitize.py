"""Cleaning foreign text before it reaches the terminal.

Textual passes escape sequences inside widget text to the terminal unchanged, and model names, log
lines, error messages and host names are written by others. No byte that a terminal acts on may
remain: after `sanitize` there is no ESC, no C0 but tab and newline, no DEL and no C1.
"""

import re

_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, ...
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    r"|[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # bidi: can reorder what is read
    r"|[\ud800-\udfff]"  # lone surrogates cannot be encoded for the terminal
)
_BREAKS = re.compile(r"[\t\n\u2028\u2029]+")


def sanitize(text: str) -> str:
    """`text` without anything that a terminal would act on; tabs and newlines stay."""
    return _CONTROL.sub("", text)


def sanitize_line(text: str) -> str:
    """The same on one line: tabs and line breaks become one space."""
    return _BREAKS.sub(" ", _CONTROL.sub("", text))
