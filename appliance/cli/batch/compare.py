"""compare: the same requests to several models, answers joined by custom_id."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from appliance.cli.batch.answers import Answer, answer_of, place_of
from appliance.cli.batch.find import find_batch, models_text, short
from appliance.cli.batch.requests import InvalidFileError
from appliance.cli.batch.results import lines_of
from appliance.cli.batch.submit import submit, tell_invalid
from appliance.cli.batch.watch import LiveLines, Show, wait_for
from appliance.cli.client import ServerClient, ServerError
from appliance.cli.output import print_table, safe
from appliance.protocol.batches import Batch, BatchProgress, BatchStatus

_LEAST_CELL = 16
_OTHERWISE_WIDE = 160


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what each model made of it."""

    custom_id: str
    is_same: bool
    """Whether all answered, and all the same."""
    answers: dict[str, Answer | None]
    """By model, or by batch where models come twice; None: the batch has no such request."""


def run(args: argparse.Namespace) -> int:
    """`appliance batch compare`."""
    client = ServerClient(args.url)
    try:
        ids = _batches(client, args)
    except InvalidFileError as error:
        return tell_invalid(error, as_json=args.json)
    ended = wait_for(client, ids, show=Show() if args.json else LiveLines())
    for each in ended:
        if each.batch.status is BatchStatus.FAILED:
            raise ServerError(
                f"{short(each.batch.id)} failed for its file.",
                hint=f"`appliance batch show {short(each.batch.id)}` says why.",
            )
    with contextlib.ExitStack() as stack:
        joined = []
        for each in ended:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="appliance-batch-"))
            joined.append(_Results(each.batch.id, file))
            joined[-1].fetch(client, each.batch)
        rows = _rows(names_of(ended), joined)
        if args.output is not None:
            _write(rows, args.output)
        elif args.json:
            for row in rows:
                sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
        else:
            _print(rows, names_of(ended), args.n)
    return 0


def names_of(batches: list[BatchProgress]) -> list[str]:
    """A column's name for each: its model where that tells them apart, else its id."""
    models = [models_text(each) for each in batches]
    is_unique = len(set(models)) == len(models)
    return models if is_unique else [short(each.batch.id) for each in batches]


def _batches(client: ServerClient, args: argparse.Namespace) -> list[str]:
    is_file = len(args.what) == 1 and Path(args.what[0]).exists()
    if is_file:
        if len(set(args.model or [])) < 2:
            raise ValueError("to compare answers to a file, give --model at least twice")
        args.file = Path(args.what[0])
        made = [batch.id for batch in submit(client, args)]
        print(f"Again with: appliance batch compare {' '.join(map(short, made))}", file=sys.stderr)
        return made
    if args.model:
        raise ValueError(f"--model is for a file, and there is no file {args.what[0]}")
    ids = list(dict.fromkeys(find_batch(client, each).batch.id for each in args.what))
    if len(ids) < 2:
        raise ValueError("give at least two batches, or a file and --model at least twice")
    return ids


class _Results:
    """Results of one batch in a temporary file, found by custom_id."""

    def __init__(self, batch_id: str, file: BinaryIO) -> None:
        self._batch_id = batch_id
        self._file = file
        self.places: dict[str, tuple[int, int, int]] = {}
        """Number of the request, offset and length of its result."""

    def fetch(self, client: ServerClient, batch: Batch) -> None:
        """Answers and errors. Raises ServerError and OSError."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                for line in lines_of(client, file_id):
                    self._add(line)

    def _add(self, line: bytes) -> None:
        number, custom_id = place_of(self._batch_id, line)
        self.places[custom_id] = (number, self._file.tell(), len(line))
        self._file.write(line)

    def answer(self, custom_id: str) -> tuple[Answer | None, bytes | None]:
        """The answer and its content; None if it has no such request."""
        place = self.places.get(custom_id)
        if place is None:
            return None, None
        _, offset, length = place
        self._file.flush()
        return answer_of(os.pread(self._file.fileno(), length, offset))


def _rows(names: list[str], results: list[_Results]) -> Iterator[Row]:
    """In the order of the first batch's requests, then what only others have."""
    first, *others = (each.places for each in results)
    ids = sorted(first, key=lambda custom_id: first[custom_id][0])
    ids += dict.fromkeys(name for places in others for name in places if name not in first)
    for custom_id in ids:
        found = [each.answer(custom_id) for each in results]
        answers = [answer for answer, _ in found]
        contents = {content for _, content in found}
        yield Row(
            custom_id=custom_id,
            is_same=len(contents) == 1 and None not in contents,
            answers=dict(zip(names, answers, strict=True)),
        )


def _write(rows: Iterator[Row], target: Path) -> None:
    try:
        with target.open("wb") as file:
            for row in rows:
                file.write(msgspec.json.encode(row) + b"\n")
    except OSError as error:
        raise ServerError(
            f"{target} cannot be written: {os.strerror(error.errno or 0)}."
        ) from error


def _print(rows: Iterator[Row], names: list[str], most: int) -> None:
    cells: list[list[str]] = []
    total = same = 0
    answered = dict.fromkeys(names, 0)
    tokens = dict.fromkeys(names, 0)
    width = shutil.get_terminal_size((_OTHERWISE_WIDE, 24)).columns
    room = max(_LEAST_CELL, (width - 24) // len(names) - 2)
    for row in rows:
        total, same = total + 1, same + row.is_same
        for name, answer in row.answers.items():
            answered[name] += answer is not None and answer.text is not None
            tokens[name] += _tokens(answer)
        if len(cells) < most:
            answers = [cell_of(row.answers[name], room) for name in names]
            cells.append([_cut(row.custom_id, 20), "=" if row.is_same else "", *answers])
    print_table(["CUSTOM_ID", "", *names], cells)
    print()
    if total > len(cells):
        print(f"{total - len(cells):,} more rows; --json or --output has all in full.")
    print(f"{same:,} of {total:,} answers are the same.")
    for name in names:
        print(f"{safe(name)}: {answered[name]:,} answered, {tokens[name]:,} tokens written")


def cell_of(answer: Answer | None, room: int) -> str:
    """One answer on one line."""
    if answer is None:
        return "-"
    return _cut(f"! {answer.error}" if answer.text is None else answer.text, room)


def _cut(text: str, room: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= room else f"{line[: room - 1]}…"


def _tokens(answer: Answer | None) -> int:
    usage = (answer.usage if answer is not None else None) or {}
    written = usage.get("completion_tokens") or usage.get("output_tokens") or 0
    return written if isinstance(written, int) else 0
