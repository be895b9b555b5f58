"""Following batches until they are over, through restarts of the server."""

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from appliance.cli.batch.find import (
    done_ratio,
    done_text,
    eta_text,
    find_batch,
    has_all_answers,
    models_text,
    path_of,
    rate_text,
    short,
    state_text,
)
from appliance.cli.client import ServerClient, UnreachableError
from appliance.cli.output import progress_bar, safe
from appliance.protocol.batches import BatchProgress
from appliance.protocol.events import BatchChanged, Event, SnapshotEvent

_AGAIN_S = 1.0
_OTHERWISE_WIDE = 200


def run(args: argparse.Namespace) -> int:
    """`appliance batch watch`."""
    client = ServerClient(args.url)
    ids = list(dict.fromkeys(find_batch(client, each).batch.id for each in args.ids))
    ended = wait_for(client, ids, show=JsonLines() if args.json else LiveLines())
    return 0 if all(has_all_answers(each.batch) for each in ended) else 1


def wait_for(client: ServerClient, ids: list[str], *, show: "Show") -> list[BatchProgress]:
    """Show how far they are until all are over; in the order of the ids. Raises ServerError."""
    known: dict[str, BatchProgress] = {}
    for progress in follow(client, ids, on_away=show.say):
        known[progress.batch.id] = progress
        show.changed(progress, [known[each] for each in ids if each in known])
    return [known[each] for each in ids]


def follow(
    client: ServerClient, ids: Iterable[str], *, on_away: Callable[[str], None] | None = None
) -> Iterator[BatchProgress]:
    """Each batch as it is and whenever it changes, until all are over. Raises ServerError."""
    left = dict.fromkeys(ids)
    was_there = False
    while left:
        try:
            for progress in _changes(client, left):
                was_there = True
                if progress.batch.status.is_final:
                    del left[progress.batch.id]
                yield progress
                if not left:
                    return
        except UnreachableError as error:
            if not was_there:
                raise
            if on_away is not None:
                on_away(error.message)
        # The server restarts: what it has done is not lost.
        time.sleep(_AGAIN_S)


def _changes(client: ServerClient, left: dict[str, None]) -> Iterator[BatchProgress]:
    decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
    with contextlib.closing(client.events("/admin/v1/events")) as messages:
        for data in messages:
            try:
                event = decoder.decode(data)
            except msgspec.MsgspecError:
                # Of a newer server.
                continue
            if isinstance(event, BatchChanged) and event.batch.batch.id in left:
                yield event.batch
            elif isinstance(event, SnapshotEvent):
                shown = {each.batch.id: each for each in event.snapshot.batches}
                for batch_id in list(left):
                    # The snapshot has not those that were over long ago.
                    known = shown.get(batch_id)
                    yield known or client.get(path_of(batch_id), BatchProgress)


def progress_text(progress: BatchProgress) -> str:
    """One line: how far, how fast, how long still, what hinders it."""
    batch, counts = progress.batch, progress.batch.request_counts
    parts = [short(batch.id), models_text(progress), state_text(progress)]
    ratio = done_ratio(batch)
    if ratio is not None:
        parts[2:2] = [progress_bar(ratio), f"{int(ratio * 100)}%"]
        parts.append(done_text(batch))
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    if batch.errors is not None:
        parts.append(f"{len(batch.errors.data)} errors in its file")
    if (rate := rate_text(progress)) != "-":
        parts.append(f"{rate.removesuffix('/s')} lines/s")
    if (eta := eta_text(progress)) != "-":
        parts.append(f"{eta} left")
    if progress.problem:
        parts.append(safe(progress.problem))
    return "  ".join(parts)


class Show:
    """What is shown of batches that are followed: here, nothing."""

    def changed(self, progress: BatchProgress, known: list[BatchProgress]) -> None:
        """One of them is new."""

    def say(self, message: str) -> None:
        """Something in between."""


class JsonLines(Show):
    """A line of JSON for each change."""

    def changed(self, progress: BatchProgress, known: list[BatchProgress]) -> None:
        """One of them is new."""
        print(msgspec.json.encode(progress).decode(), flush=True)


class LiveLines(Show):
    """A line for each, rewritten in place on a terminal; elsewhere a line for each new state."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._height = 0
        self._told: dict[str, tuple[object, ...]] = {}

    def changed(self, progress: BatchProgress, known: list[BatchProgress]) -> None:
        """One of them is new."""
        if self._is_terminal:
            self._write([progress_text(each) for each in known])
            return
        state = (progress.batch.status, progress.is_paused, progress.problem)
        if self._told.get(progress.batch.id) != state:
            self._told[progress.batch.id] = state
            print(progress_text(progress), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Something in between, once."""
        if self._told.get("") != (message,):
            self._told[""] = (message,)
            print(f"{safe(message)} Trying again.", file=sys.stderr, flush=True)
            self._height = 0

    def _write(self, lines: list[str]) -> None:
        width = shutil.get_terminal_size((_OTHERWISE_WIDE, 24)).columns
        up = f"\x1b[{self._height}A" if self._height else ""
        body = "".join(f"\r\x1b[K{line[: width - 1]}\n" for line in lines)
        print(up + body, end="", file=sys.stderr, flush=True)
        self._height = len(lines)
