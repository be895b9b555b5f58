"""fetch: answers of a batch and what failed, to files."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.cli.batch.find import find_batch, short
from appliance.cli.client import ServerClient, ServerError
from appliance.cli.output import print_json
from appliance.protocol.batches import Batch


def fetch(args: argparse.Namespace) -> int:
    """`appliance batch fetch`."""
    client = ServerClient(args.url)
    batch = find_batch(client, args.id).batch
    check_over(batch)
    if args.errors is not None:
        _save(client, batch.error_file_id, args.errors)
    wants_answers = args.output is not None or args.errors is None
    if wants_answers and batch.output_file_id is None:
        raise ServerError(
            f"No line of {short(batch.id)} was answered.",
            hint=f"`appliance batch show {short(batch.id)}` says why;"
            " `fetch --errors FILE` gets all errors.",
        )
    if args.output is not None:
        _save(client, batch.output_file_id, args.output)
    elif wants_answers and batch.output_file_id is not None:
        for piece in client.content(batch.output_file_id):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    failed = 0 if args.errors is not None else batch.request_counts.failed
    if failed:
        print(
            f"{failed:,} lines failed: appliance batch fetch {short(batch.id)} --errors FILE",
            file=sys.stderr,
        )
    if args.json and not (wants_answers and args.output is None):
        print_json(batch)
    return 0


def check_over(batch: Batch) -> None:
    """Raises ServerError where there is nothing to fetch yet, or ever."""
    if not batch.status.is_final:
        raise ServerError(
            f"{short(batch.id)} is not over: {batch.status.value}.",
            hint=f"`appliance batch watch {short(batch.id)}` waits for it.",
        )


def lines_of(client: ServerClient, file_id: str) -> Iterator[bytes]:
    """The lines of a file of the server, without their ends. Raises ServerError."""
    return split(client.content(file_id))


def split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a text in pieces, without their ends; split at line feeds alone."""
    held: list[bytes] = []
    for piece in pieces:
        first, *rest = piece.split(b"\n")
        held.append(first)
        if rest:
            yield b"".join(held)
            yield from rest[:-1]
            held = [rest[-1]]
    if last := b"".join(held):
        yield last


def _save(client: ServerClient, file_id: str | None, target: Path) -> None:
    """All of it, or nothing; an empty file where there is none. Raises ServerError."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            for piece in client.content(file_id) if file_id is not None else ():
                file.write(piece)
        part.replace(target)
    except OSError as error:
        raise ServerError(
            f"{target} cannot be written: {os.strerror(error.errno or 0)}."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
