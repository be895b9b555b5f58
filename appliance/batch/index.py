"""Reads a batch's input once: where its lines are and which model each wants, or what is wrong.

One pass, a piece of the file at a time; what stays in memory is a few bytes for each line.
"""

import codecs
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.batch.lines import ModelCheck, Request, check_line, is_blank
from appliance.protocol.batches import BatchError
from appliance.units import format_size

_PIECE_BYTES = 1024 * 1024
_MOST_ERRORS = 100
# OpenAI's, for all lines of a batch of embeddings.
MOST_INPUTS = 50_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a batch may be at most."""

    lines: int
    line_bytes: int
    single_model: bool = False


@dataclass
class LineIndex:
    """Lines by number, from 0: offset and length in the file, and their model."""

    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    model_numbers: "array[int]" = field(default_factory=lambda: array("I"))
    models: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, descriptor: int, number: int) -> bytes:
        """A line, from its file."""
        return os.pread(descriptor, self.lengths[number], self.offsets[number])

    def add(self, offset: int, length: int, model_number: int) -> None:
        """The next line."""
        self.offsets.append(offset)
        self.lengths.append(length)
        self.model_numbers.append(model_number)


def index_file(
    file: Path, endpoint: str, task_of: ModelCheck, limits: Limits
) -> LineIndex | list[BatchError]:
    """All lines, or what is wrong: the first hundred problems, by line. Blocks; raises OSError."""
    found = _Pass(endpoint, task_of, limits)
    with file.open("rb") as source:
        for number, offset, line in _lines(source.fileno(), limits.line_bytes):
            found.take(number, offset, line)
            if found.is_enough:
                break
    return found.result()


class _Pass:
    """What one reading of a file has found so far."""

    def __init__(self, endpoint: str, task_of: ModelCheck, limits: Limits) -> None:
        self._endpoint = endpoint
        self._task_of = task_of
        self._limits = limits
        self._index = LineIndex()
        self._errors: list[BatchError] = []
        self._numbers: dict[str, int] = {}
        self._seen: set[bytes] = set()
        self._requests = 0
        self._inputs = 0

    @property
    def is_enough(self) -> bool:
        """Whether reading on would tell nobody anything."""
        return len(self._errors) >= _MOST_ERRORS or self._requests > self._limits.lines

    def take(self, number: int, offset: int, line: bytes | None) -> None:
        """A line of the file, None for one that is too long."""
        if line is None:
            message = f"This line is longer than {format_size(self._limits.line_bytes)}."
            self._errors.append(BatchError(code="line_too_long", message=message, line=number))
            return
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            offset, line = offset + len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
        if is_blank(line):
            return
        self._requests += 1
        if self._requests > self._limits.lines:
            message = f"The batch has more than {self._limits.lines} requests."
            self._errors.append(BatchError(code="too_many_tasks", message=message))
            return
        request = check_line(line, number, self._endpoint, self._task_of)
        if isinstance(request, list):
            self._errors += request
            return
        self._check_id(request, number)
        self._inputs += request.inputs
        model_number = self._number_of(request.model, number)
        if not self._errors:
            self._index.add(offset, len(line), model_number)

    def result(self) -> LineIndex | list[BatchError]:
        """What came of it."""
        if not self._requests and not self._errors:
            self._errors.append(BatchError(code="empty_file", message="The file has no requests."))
        if self._endpoint == "/v1/embeddings" and self._inputs > MOST_INPUTS:
            message = f"All requests together have more than {MOST_INPUTS} inputs."
            self._errors.append(BatchError(code="too_many_inputs", message=message))
        self._index.models = list(self._numbers)
        return self._errors[:_MOST_ERRORS] or self._index

    def _check_id(self, request: Request, number: int) -> None:
        digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            self._errors.append(
                BatchError(
                    code="duplicate_custom_id",
                    message="The custom_id for this request is a duplicate of another request."
                    " The custom_id parameter must be unique for each request in a batch.",
                    line=number,
                    param="custom_id",
                )
            )
        self._seen.add(digest)

    def _number_of(self, model: str, number: int) -> int:
        known = self._numbers.setdefault(model, len(self._numbers))
        if known and self._limits.single_model:
            message = f"All requests of a batch must name one model; the first is {self._first()}."
            self._errors.append(
                BatchError(code="model_mismatch", message=message, line=number, param="body.model")
            )
        return known

    def _first(self) -> str:
        return next(iter(self._numbers))


def _lines(descriptor: int, most_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Number from 1, offset and text of each line; None for one that is too long.

    Split at line feeds alone: strings in JSON may hold any other separator.
    """
    number, start, held = 0, 0, b""
    skipping = False
    while piece := os.read(descriptor, _PIECE_BYTES):
        parts = (held + piece).split(b"\n")
        held = parts.pop()
        for part in parts:
            number += 1
            is_long = skipping or len(part) > most_bytes
            yield number, start, None if is_long else part
            start += len(part) + 1
            skipping = False
        if len(held) > most_bytes:
            # Of a line that is too long only the end is looked for.
            start += len(held)
            held, skipping = b"", True
    if held or skipping:
        yield number + 1, start, None if skipping or len(held) > most_bytes else held
