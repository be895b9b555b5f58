"""What batches do when the disk fails, or has no room."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.batch import runner as runner_module
from appliance.batch.journal import Journal
from appliance.batch.run import BatchRun
from appliance.batch.service import CreateBatch
from appliance.errors import ConflictError, NotFoundError
from appliance.protocol.batches import BatchStatus
from appliance.store.database import Database, StoreError
from tests.support.batches import CHAT, DAY_S, Gate, World, many


async def test_an_input_that_vanishes_while_the_server_is_down_is_told(tmp_path: Path) -> None:
    gate = Gate(first=3)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(9))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 3)
        world.files.path(batch.input_file_id).unlink()
    async with World(tmp_path) as world:
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.FAILED
        assert ended.errors is not None
        assert ended.errors.data[0].param == "file_id"
        assert ended.request_counts.completed == 3
        assert len(world.lines(ended.output_file_id)) == 3


async def test_an_input_that_is_in_use_stays(tmp_path: Path) -> None:
    gate = Gate()
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(2))
        with pytest.raises(ConflictError):
            await world.files.delete(batch.input_file_id)
        world.time.pass_by(40 * DAY_S)
        await world.files.delete_expired()
        await world.ended(batch.id)
        await world.files.delete_expired()
        with pytest.raises(NotFoundError):
            await world.files.find(batch.input_file_id)


async def test_no_batch_is_made_over_a_file_that_goes_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path) as world:
        file = await world.upload(many(1))
        find = world.files.find

        async def find_then_lose(file_id: str) -> Any:
            found = await find(file_id)
            await world.files.delete(file_id)
            return found

        monkeypatch.setattr(world.files, "find", find_then_lose)
        wanted = CreateBatch(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        with pytest.raises(NotFoundError):
            await world.service.create(wanted)


def failing_once(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: Exception
) -> Callable[[], int]:
    """The next call fails; how many there were."""
    real = getattr(owner, name)
    calls = 0

    def fails(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return real(*given, **named)

    monkeypatch.setattr(owner, name, fails)
    return lambda: calls


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (os, "pwrite", FULL),
        (os, "fdatasync", OSError(errno.EIO, "Input/output error")),
        (BatchRun, "open", FULL),
        (BatchRun, "write_rest", FULL),
        (runner_module, "index_file", OSError(errno.EIO, "Input/output error")),
        (BatchRun, "count", RuntimeError("a bug")),
        (Path, "rename", FULL),
    ],
    ids=["write", "sync", "open", "rest", "read", "bug", "rename"],
)
async def test_one_failure_of_the_disk_changes_nothing_of_the_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: Exception,
) -> None:
    async with World(tmp_path) as world:
        file = await world.upload(many(10))
        calls = failing_once(monkeypatch, owner, name, error)
        wanted = CreateBatch(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        batch = await world.service.create(wanted)
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.COMPLETED
        assert len(world.lines(ended.output_file_id)) == 10
        assert calls() or name == "count"


async def test_a_disk_that_fails_at_the_start_of_the_server_empties_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(first=4)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(10))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 4)
    calls = failing_once(monkeypatch, Journal, "recover", FULL)
    async with World(tmp_path) as world:
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.COMPLETED
        assert ended.request_counts.completed == 10
        assert len(world.lines(ended.output_file_id)) == 10
    assert calls() == 2


async def test_a_store_that_cannot_be_written_holds_the_batch_up_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = False
    real = Database._in_transaction

    def maybe(database: Database, change: Callable[[], Any]) -> Any:
        if is_full:
            raise StoreError("database or disk is full")
        return real(database, change)

    monkeypatch.setattr(Database, "_in_transaction", maybe)
    gate = Gate()
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(5))
        await world.until(lambda: gate.asked == 5)
        is_full = True
        gate.go.set()
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.trouble, "it says so")
        assert "disk" in str((await world.service.progress(batch.id)).problem)
        is_full = False
        ended = await world.ended(batch.id)
        assert ended.request_counts.completed == 5
        assert (await world.service.progress(batch.id)).problem is None


async def test_too_little_room_pauses_the_batch_and_room_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(first=3)
    async with World(tmp_path, serve=gate) as world:
        file = await world.upload(many(6))
        has_space = False
        monkeypatch.setattr(world.files, "has_space", lambda *_: has_space)
        wanted = CreateBatch(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        batch = await world.service.create(wanted)
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.trouble, "it says so")
        problem = (await world.service.progress(batch.id)).problem
        assert problem == "the disk has less free than batches.disk_reserve"
        assert not world.slots.asked
        has_space = True
        gate.go.set()
        assert (await world.ended(batch.id)).request_counts.completed == 6
