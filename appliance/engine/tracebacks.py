"""What an engine's log says, without what only programmers read. Pure.

vLLM writes `(EngineCore pid=7) ERROR 11-21 11:55:12 [core.py:1510] text` and repeats that beginning
on each line of a record; what Python and C libraries write to standard error has none of it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_RECORD = re.compile(
    r"(?P<process>\([A-Za-z_]\w* pid=\d+\) ?)?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ (?P<source>\[[^\]]+\]) ?)?"
    r"(?:\[rank\d+\]: ?)?"
)
_FRAME = re.compile(r'  File "')
_DEEP = "    "
_NOISE = re.compile(
    r"Traceback \(most recent call last\)|frame #\d+|Exception raised from|usage: "
    r"|\d+%[^|]*\|"
    r"|During handling of the above exception|The above exception was the direct cause"
    r"|For further information visit|For debugging consider|Compile with `TORCH_USE_CUDA_DSA`"
    r"|[█▄▀]|^non-default args: |^Unknown vLLM environment variable|^Found ulimit of"
)
# Python's own shows the line of source that it is about below it.
_WARNING = re.compile(r"\w*Warning: |^\[W\d+ ")
# vLLM writes these as errors with a traceback and goes on.
_SURVIVED = ("Error saving model info cache",)
_QUIET = {"DEBUG", "INFO", "WARNING"}


class Statement(NamedTuple):
    """A line that says something."""

    line: int
    """Its place in the lines that were given."""
    text: str
    is_error: bool
    """False for what vLLM itself calls no error, or goes on after."""
    place: str = ""
    """The innermost frame of the traceback that ended with this line."""


def statements(lines: Sequence[str]) -> list[Statement]:
    """The lines that say something, in their order."""
    found: list[Statement] = []
    frames: dict[str, str] = {}
    survived = ""
    is_after_warning = False
    for index, line in enumerate(lines):
        record = _RECORD.match(line)
        assert record is not None
        process = record["process"] or ""
        text = line[record.end() :].rstrip()
        if _FRAME.match(text):
            frames[process] = text.strip()
            continue
        if record["level"] is None and _WARNING.search(text):
            is_after_warning = True
            continue
        is_source = is_after_warning and text.startswith("  ")
        is_after_warning = False
        if not text or is_source or text.startswith(_DEEP) or _NOISE.search(text):
            continue
        text = text.strip()
        origin = f"{process}{record['source']}"
        if text.startswith(_SURVIVED):
            survived = origin
        elif origin != survived:
            survived = ""
        is_quiet = record["level"] in _QUIET or bool(survived)
        found.append(Statement(index, text, not is_quiet, frames.pop(process, "")))
    return found
