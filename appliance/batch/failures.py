"""Why lines of a batch failed: the first entries of its error file, while it still grows too."""

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from appliance.batch.journal import line_number
from appliance.protocol.batches import LineFailure

_LONGEST_MESSAGE = 500


class _Error(msgspec.Struct):
    message: Any = None
    code: Any = None


class _Body(msgspec.Struct):
    error: _Error | None = None


class _Answer(msgspec.Struct):
    status_code: int | None = None
    body: _Body | None = None


class _Line(msgspec.Struct):
    id: str
    custom_id: str
    response: _Answer | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Line).decode


def first_failures(batch_id: str, places: Iterable[Path], most: int) -> list[LineFailure]:
    """From the first place with a file, in the order in which they came; none if there is none.

    Blocks; raises OSError.
    """
    for place in places:
        with contextlib.suppress(FileNotFoundError), place.open("rb") as lines:
            # A line without its end is being written.
            whole = itertools.takewhile(lambda line: line.endswith(b"\n"), lines)
            return [failure_of(batch_id, line) for line in itertools.islice(whole, most)]
    return []


def failure_of(batch_id: str, line: bytes) -> LineFailure:
    """One line of an error file. Raises MsgspecError and ValueError."""
    result = _decode(line)
    answer = result.response
    error = result.error if answer is None or answer.body is None else answer.body.error
    error = error or _Error()
    return LineFailure(
        line=line_number(batch_id, result.id) + 1,
        custom_id=result.custom_id,
        status_code=None if answer is None else answer.status_code,
        code=None if error.code is None else str(error.code),
        message=str(error.message or "no reason given")[:_LONGEST_MESSAGE],
    )
