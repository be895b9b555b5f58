"""Followers of batches: through lost connections, with a server that knows more than they do."""

from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from appliance.cli.batch import watch
from appliance.cli.batch.watch import LiveLines, follow, wait_for
from appliance.cli.client import UnreachableError
from appliance.protocol.batches import Batch, BatchProgress, BatchStatus
from appliance.protocol.devices import DeviceSource
from appliance.protocol.events import BatchChanged, Event, SnapshotEvent
from appliance.protocol.system import ServerInfo, Snapshot

RUNNING, DONE = BatchStatus.IN_PROGRESS, BatchStatus.COMPLETED


def progress(name: str, status: BatchStatus, **facts: Any) -> BatchProgress:
    batch = Batch(
        id=name, endpoint="/v1/completions", input_file_id="f", completion_window="24h",
        status=status, created_at=1,
    )  # fmt: skip
    return BatchProgress(batch=batch, **facts)


def snapshot(*batches: BatchProgress) -> Event:
    server = ServerInfo(
        host="box", version="1", pid=1, started_at=datetime(2026, 1, 1, tzinfo=UTC), listen="",
        device_source=DeviceSource.CPU,
    )  # fmt: skip
    return SnapshotEvent(
        snapshot=Snapshot(
            seq=1, server=server, devices=[], models=[], engines=[], alerts=[], batches=[*batches]
        )
    )


class FakeServer:
    """Each connection gives the next list of events, and ends or fails."""

    def __init__(self, *connections: list[Event | bytes] | UnreachableError) -> None:
        self._connections: Iterator[list[Event | bytes] | UnreachableError] = iter(connections)
        self.asked: list[str] = []

    def events(self, path: str) -> Generator[bytes, None, None]:
        connection = next(self._connections)
        if isinstance(connection, UnreachableError):
            raise connection
        for event in connection:
            yield event if isinstance(event, bytes) else msgspec.json.encode(event)

    def get(self, path: str, kind: type[BatchProgress]) -> BatchProgress:
        self.asked.append(path)
        return progress(path.rpartition("/")[2], DONE)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AGAIN_S", 0.0)


def statuses(server: FakeServer, *ids: str) -> list[tuple[str, str]]:
    return [
        (each.batch.id, each.batch.status.value)
        for each in follow(server, ids)  # type: ignore[arg-type]
    ]


def test_only_the_wanted_batches_are_told_until_all_are_over() -> None:
    server = FakeServer(
        [
            snapshot(progress("a", RUNNING), progress("b", RUNNING), progress("c", RUNNING)),
            b'{"type": "of a newer server"}',
            BatchChanged(batch=progress("b", DONE)),
            BatchChanged(batch=progress("c", DONE)),
            BatchChanged(batch=progress("b", DONE)),
            BatchChanged(batch=progress("a", DONE)),
        ]
    )
    assert statuses(server, "a", "c") == [
        ("a", "in_progress"),
        ("c", "in_progress"),
        ("c", "completed"),
        ("a", "completed"),
    ]


def test_a_server_that_restarts_is_waited_for() -> None:
    away = UnreachableError("gone for a moment")
    server = FakeServer(
        [snapshot(progress("a", RUNNING))],
        away,
        away,
        [snapshot(progress("a", RUNNING)), BatchChanged(batch=progress("a", DONE))],
    )
    told: list[str] = []
    found = list(follow(server, ["a"], on_away=told.append))  # type: ignore[arg-type]
    assert [each.batch.status for each in found] == [RUNNING, RUNNING, DONE]
    assert told == ["gone for a moment"] * 2


def test_a_server_that_never_was_there_is_an_error() -> None:
    with pytest.raises(UnreachableError):
        statuses(FakeServer(UnreachableError("nobody")), "a")


def test_a_batch_that_was_over_long_ago_is_asked_for() -> None:
    server = FakeServer([snapshot()])
    assert statuses(server, "old") == [("old", "completed")]
    assert server.asked == ["/admin/v1/batches/old"]


def test_without_a_terminal_a_line_comes_with_each_new_state_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = FakeServer(
        [
            snapshot(progress("a", RUNNING)),
            BatchChanged(batch=progress("a", RUNNING, in_flight=3)),
            BatchChanged(batch=progress("a", RUNNING, problem="no room")),
            BatchChanged(batch=progress("a", DONE)),
        ]
    )
    ended = wait_for(server, ["a"], show=LiveLines())  # type: ignore[arg-type]
    assert [each.batch.status for each in ended] == [DONE]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == ["in_progress", "room", "completed"]


def test_on_a_terminal_lines_are_rewritten_in_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    server = FakeServer(
        [
            snapshot(progress("a", RUNNING), progress("b", RUNNING)),
            BatchChanged(batch=progress("a", DONE)),
            BatchChanged(batch=progress("b", DONE)),
        ]
    )
    wait_for(server, ["a", "b"], show=LiveLines())  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.count("\x1b[1A") == 1
    assert said.count("\x1b[2A") == 2
    assert said.endswith("b  -  completed\n")
