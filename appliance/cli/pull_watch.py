"""Following a pull until it stops, through restarts of the server."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import msgspec

from appliance.cli.client import ServerClient, UnreachableError
from appliance.cli.output import progress_bar, safe
from appliance.protocol.events import Event, PullChanged, SnapshotEvent
from appliance.protocol.pulls import Pull, PullPhase
from appliance.units import format_duration, format_size

_AGAIN_S = 1.0
_OTHERWISE_WIDE = 200


def follow(client: ServerClient, pull_id: str, *, say: Callable[[str], None]) -> Iterator[Pull]:
    """The pull as it is and whenever it changes, without an end. Raises ServerError."""
    was_there = False
    while True:
        try:
            for pull in _changes(client, pull_id):
                was_there = True
                yield pull
        except UnreachableError as error:
            if not was_there:
                raise
            say(f"{error.message} Trying again.")
        # The server restarts, and then goes on with the pull.
        time.sleep(_AGAIN_S)


def _changes(client: ServerClient, pull_id: str) -> Iterator[Pull]:
    decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
    with contextlib.closing(client.events("/admin/v1/events")) as messages:
        for data in messages:
            try:
                event = decoder.decode(data)
            except msgspec.MsgspecError:
                # Of a newer server.
                continue
            if isinstance(event, PullChanged) and event.pull.id == pull_id:
                yield event.pull
            elif isinstance(event, SnapshotEvent):
                known = {pull.id: pull for pull in event.snapshot.pulls}
                yield known.get(pull_id) or client.get(f"/admin/v1/pulls/{pull_id}", Pull)


def progress_text(pull: Pull) -> str:
    """One line: how far, how fast, how long still, what hinders it."""
    parts = [safe(pull.repo)]
    if pull.total_bytes:
        ratio = pull.done_bytes / pull.total_bytes
        parts += [progress_bar(ratio), f"{int(ratio * 100)}%"]
        parts.append(f"{format_size(pull.done_bytes)} of {format_size(pull.total_bytes)}")
    if pull.phase is not PullPhase.FETCHING:
        parts.append(pull.phase.value if pull.phase else pull.state.value)
    elif pull.total_bytes == pull.done_bytes:
        parts.append("verifying")
    elif pull.rate_bytes_per_s:
        parts.append(f"{format_size(pull.rate_bytes_per_s)}/s")
        if pull.eta_s is not None:
            parts.append(f"{format_duration(pull.eta_s)} left")
    if pull.problem is not None and pull.state.is_active:
        parts.append(f"{safe(pull.problem.message)} It is tried again.")
    return "  ".join(parts)


class Show:
    """What is shown of a pull that is followed."""

    def changed(self, pull: Pull) -> None:
        """It is new."""
        raise NotImplementedError

    def say(self, message: str) -> None:
        """Something in between, on its own line."""
        print(safe(message), file=sys.stderr, flush=True)


class JsonLines(Show):
    """A line of JSON for each change; the last one is how it ended."""

    def changed(self, pull: Pull) -> None:
        """It is new."""
        print(msgspec.json.encode(pull).decode(), flush=True)


class Lines(Show):
    """One line, rewritten in place on a terminal; elsewhere a line for each new state."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._is_open = False
        self._told: tuple[object, ...] | None = None
        self._said = ""

    def changed(self, pull: Pull) -> None:
        """It is new."""
        if self._is_terminal:
            width = shutil.get_terminal_size((_OTHERWISE_WIDE, 24)).columns
            end = "" if pull.state.is_active else "\n"
            line = progress_text(pull)[: width - 1]
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)
            self._is_open = not end
            return
        headline = (pull.state, pull.phase, pull.problem)
        if headline != self._told:
            self._told = headline
            print(progress_text(pull), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Something in between; the same only once."""
        if message != self._said:
            self._said = message
            if self._is_open:
                print(file=sys.stderr)
                self._is_open = False
            super().say(message)
