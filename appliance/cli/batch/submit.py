"""submit, validate and retry: from a file of requests to a batch."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from appliance.cli.batch.find import find_batch, has_all_answers, path_of, short
from appliance.cli.batch.requests import (
    InvalidFileError,
    any_model,
    checked,
    endpoint_of,
    limits_of,
    with_model,
)
from appliance.cli.batch.watch import LiveLines, Show, wait_for
from appliance.cli.client import ServerClient, UnreachableError
from appliance.cli.output import print_json, safe
from appliance.protocol.batches import Batch, BatchError, BatchErrors, BatchProgress, BatchStatus
from appliance.protocol.models import Model, Task

_STANDARD_INPUT = Path("-")
_MOST_ERRORS = 20


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a creation, as OpenAI has it."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """A file in which nothing is wrong, for `--json`."""

    file: str
    endpoint: str
    requests: int
    models: list[str]


def run(args: argparse.Namespace) -> int:
    """`appliance batch submit`."""
    client = ServerClient(args.url)
    try:
        made = submit(client, args)
    except InvalidFileError as error:
        return tell_invalid(error, as_json=args.json)
    if not args.json:
        _tell_made(made, wait=args.wait)
    return _finish(client, made, args)


def submit(client: ServerClient, args: argparse.Namespace) -> list[Batch]:
    """One batch, or one for each model. Raises InvalidFileError, ServerError and ValueError."""
    metadata = dict(_pair(text) for text in args.metadata or []) or None
    made = []
    with tempfile.TemporaryDirectory(prefix="appliance-batch-") as directory:
        source = _input(args.file, Path(directory))
        endpoint = args.endpoint or endpoint_of(source)
        tasks = _tasks(client)
        files = list(_copies(source, args.model or [], Path(directory)))
        for file in files:
            # Nothing is uploaded before all of them are sound.
            checked(file, endpoint, tasks.get, limits_of(args.url, os.environ))
        for file in files:
            with file.open("rb") as content:
                made.append(start(client, content, source.name, endpoint, args.window, metadata))
    return made


def start(
    client: ServerClient,
    content: BinaryIO,
    name: str,
    endpoint: str,
    window: str,
    metadata: dict[str, str] | None,
) -> Batch:
    """Upload a file and create its batch. Raises ServerError."""
    file = client.upload(content, name)
    wanted = NewBatch(
        input_file_id=file.id, endpoint=endpoint, completion_window=window, metadata=metadata
    )
    return client.post("/v1/batches", Batch, wanted)


def validate(args: argparse.Namespace) -> int:
    """`appliance batch validate`."""
    models: dict[str, None] = {}
    requests = 0
    with tempfile.TemporaryDirectory(prefix="appliance-batch-") as directory:
        source = _input(args.file, Path(directory))
        endpoint = args.endpoint or endpoint_of(source)
        task_of = any_model(endpoint)
        try:
            tasks = _tasks(ServerClient(args.url))
        except UnreachableError:
            print("No server answers: names of models are not checked.", file=sys.stderr)
        else:
            task_of = tasks.get
        try:
            for file in _copies(source, args.model or [], Path(directory)):
                index = checked(file, endpoint, task_of, limits_of(args.url, os.environ))
                requests = len(index)
                models |= dict.fromkeys(index.models)
        except InvalidFileError as error:
            return tell_invalid(error, as_json=args.json)
    if args.json:
        print_json(
            Sound(file=str(args.file), endpoint=endpoint, requests=requests, models=list(models))
        )
    else:
        names = safe(", ".join(models))
        print(f"{safe(source.name)} is sound: {requests:,} requests to {endpoint} for {names}.")
    return 0


def retry(args: argparse.Namespace) -> int:
    """`appliance batch retry`."""
    client = ServerClient(args.url)
    batch = find_batch(client, args.id).batch
    is_sound = batch.status.is_final and batch.status is not BatchStatus.FAILED
    if is_sound and batch.error_file_id is None:
        print(f"Every line of {short(batch.id)} was answered.", file=sys.stderr)
        if args.json:
            print_json([])
        return 0
    made = client.post(f"{path_of(batch.id)}/retry", BatchProgress, is_slow=True).batch
    if not args.json:
        # Those that never ran are not counted as failed.
        without = batch.request_counts.total - batch.request_counts.completed
        print(f"{without:,} lines of {short(batch.id)} again:", file=sys.stderr)
        _tell_made([made], wait=args.wait)
    return _finish(client, [made], args)


def _finish(client: ServerClient, made: list[Batch], args: argparse.Namespace) -> int:
    status = 0
    if args.wait:
        ended = wait_for(
            client, [each.id for each in made], show=Show() if args.json else LiveLines()
        )
        made = [each.batch for each in ended]
        status = 0 if all(map(has_all_answers, made)) else 1
    if args.json:
        print_json(made)
    return status


def error_text(error: BatchError) -> str:
    """One problem of a file."""
    where = "" if error.line is None else f"line {error.line}: "
    param = "" if error.param is None else f" ({error.param})"
    return f"{where}{error.message}{param}"


def _input(file: Path, directory: Path) -> Path:
    """The file, or a copy of what comes on standard input. Raises ValueError and OSError."""
    if file == _STANDARD_INPUT:
        copy = directory / "stdin.jsonl"
        with copy.open("wb") as target:
            shutil.copyfileobj(sys.stdin.buffer, target)
        return copy
    try:
        with file.open("rb"):
            return file
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


def _copies(source: Path, models: list[str], directory: Path) -> Iterable[Path]:
    if not models:
        yield source
    for number, model in enumerate(dict.fromkeys(models)):
        copy = directory / f"{number}" / source.name
        copy.parent.mkdir()
        with_model(source, copy, model)
        yield copy


def _tasks(client: ServerClient) -> dict[str, Task]:
    return {each.id: each.settings.task for each in client.get("/admin/v1/models", list[Model])}


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise ValueError(f"{text!r} is no KEY=VALUE")
    return key, value


def _tell_made(made: list[Batch], *, wait: bool) -> None:
    """Ids for programs; what to do with them for people."""
    for batch in made:
        print(batch.id)
    if not wait:
        ids = " ".join(short(batch.id) for batch in made)
        print(f"Follow with: appliance batch watch {ids}", file=sys.stderr)


def tell_invalid(error: InvalidFileError, *, as_json: bool) -> int:
    """The first problems, by line; the exit status."""
    if as_json:
        print_json(BatchErrors(data=error.errors))
        return 1
    print(f"appliance: {safe(error.message)}", file=sys.stderr)
    for each in error.errors[:_MOST_ERRORS]:
        print(f"  {safe(error_text(each))}", file=sys.stderr)
    if len(error.errors) > _MOST_ERRORS:
        print(f"  and {len(error.errors) - _MOST_ERRORS} more", file=sys.stderr)
    return 1
