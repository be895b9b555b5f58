"""Batches that end early, late, or over a restart of the server."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.batch import runner as runner_module
from appliance.batch.index import LineIndex, index_file
from appliance.batch.run import BatchRun
from appliance.batch.service import CreateBatch
from appliance.errors import ConflictError, NotFoundError
from appliance.protocol.batches import BatchStatus
from tests.support.batches import (
    CHAT,
    DAY_S,
    FakeClock,
    Gate,
    World,
    many,
)


async def test_cancel_keeps_what_is_done_and_lists_the_rest(tmp_path: Path) -> None:
    gate = Gate(first=5)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(40))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 5)
        first = await world.service.cancel(batch.id)
        assert first.status is BatchStatus.CANCELLING
        again = await world.service.cancel(batch.id)
        assert again.status in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.CANCELLED
        assert ended.cancelled_at is not None
        assert ended.completed_at is None
        assert ended.expired_at is None
        assert len(world.lines(ended.output_file_id)) == 5
        rest = world.lines(ended.error_file_id)
        assert len(rest) == 35
        assert {line["error"]["code"] for line in rest.values()} == {"batch_cancelled"}
        assert all(line["response"] is None for line in rest.values())
        counts = ended.request_counts
        assert (counts.total, counts.completed, counts.failed) == (40, 5, 0)
        assert (await world.service.cancel(batch.id)).status is BatchStatus.CANCELLED


async def test_what_is_over_cannot_be_cancelled(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        done = await world.ended((await world.submit(many(1))).id)
        with pytest.raises(ConflictError, match=r"Cannot cancel a batch with status 'completed'\."):
            await world.service.cancel(done.id)
        failed = await world.ended((await world.submit(b"{}\n")).id)
        assert failed.status is BatchStatus.FAILED
        with pytest.raises(ConflictError, match="'failed'"):
            await world.service.cancel(failed.id)
        with pytest.raises(NotFoundError):
            await world.service.cancel("batch_0")


@pytest.mark.parametrize("is_sound", [True, False])
async def test_a_cancel_while_the_file_is_validated_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sound: bool
) -> None:
    loop = asyncio.get_running_loop()
    reading, go = asyncio.Event(), asyncio.Event()

    def slow(*given: Any) -> Any:
        loop.call_soon_threadsafe(reading.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        return index_file(*given)

    monkeypatch.setattr(runner_module, "index_file", slow)
    async with World(tmp_path) as world:
        batch = await world.submit(many(4) if is_sound else b"{}\n")
        await reading.wait()
        await world.service.cancel(batch.id)
        go.set()
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.CANCELLED
        assert not world.slots.asked
        assert len(world.lines(ended.error_file_id)) == (4 if is_sound else 0)
        assert ended.request_counts.total == (4 if is_sound else 0)


async def test_a_cancel_while_the_batch_is_opened_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    opening, go = asyncio.Event(), asyncio.Event()
    real = BatchRun.open

    def slow(run: BatchRun, file: Path, index: LineIndex) -> None:
        loop.call_soon_threadsafe(opening.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        real(run, file, index)

    monkeypatch.setattr(BatchRun, "open", slow)
    async with World(tmp_path) as world:
        batch = await world.submit(many(4))
        await opening.wait()
        await world.service.cancel(batch.id)
        go.set()
        assert (await world.ended(batch.id)).status is BatchStatus.CANCELLED


async def test_a_batch_that_is_late_ends_with_what_it_has(tmp_path: Path) -> None:
    gate = Gate(first=7)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(20))
        assert batch.expires_at == batch.created_at + DAY_S
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 7)
        world.time.pass_by(DAY_S - 1)
        assert run.batch.status is BatchStatus.IN_PROGRESS
        world.time.pass_by(1)
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.EXPIRED
        assert ended.expired_at == ended.created_at + DAY_S
        assert ended.completed_at is None
        rest = world.lines(ended.error_file_id)
        assert {line["error"]["code"] for line in rest.values()} == {"batch_expired"}
        assert len(world.lines(ended.output_file_id)) == 7
        counts = ended.request_counts
        assert (counts.total, counts.completed, counts.failed) == (20, 7, 0)
        with pytest.raises(ConflictError, match="'expired'"):
            await world.service.cancel(batch.id)


async def test_a_batch_may_get_late_while_the_server_is_down(tmp_path: Path) -> None:
    gate, time = Gate(first=2), FakeClock()
    async with World(tmp_path, serve=gate, time=time) as world:
        batch = await world.submit(many(5))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 2)
    time.pass_by(3 * DAY_S)
    async with World(tmp_path, time=time) as world:
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.EXPIRED
        assert len(world.lines(ended.output_file_id)) == 2
        assert not world.slots.asked


async def test_a_clock_that_is_set_does_not_make_a_batch_late(tmp_path: Path) -> None:
    gate = Gate(first=1)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(4))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 1)
        world.time.wall += 400 * DAY_S
        gate.go.set()
        assert (await world.ended(batch.id)).status is BatchStatus.COMPLETED
        world.time.wall -= 800 * DAY_S
        second = await world.submit(many(4))
        listed = await world.service.page(after=None, limit=10)
        assert [each.id for each in listed.data] == [second.id, batch.id]


async def test_a_stop_while_it_works_loses_and_repeats_nothing(tmp_path: Path) -> None:
    gate = Gate(first=6)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(20))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.lines.count(1) == 6)
    async with World(tmp_path) as world:
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.COMPLETED
        assert len(world.slots.asked) == 14
        assert len(world.lines(ended.output_file_id)) == 20
        assert ended.usage is not None
        assert ended.usage.total_tokens == 100


async def test_lines_that_never_ran_are_no_failures_after_a_restart_either(tmp_path: Path) -> None:
    """The error file may hold some of the rest already."""
    gate = Gate(first=2)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(6))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 2)
    directory = tmp_path / "batches" / batch.id
    identity = batch.id.removeprefix("batch_")
    error = {"code": "batch_cancelled", "message": "x"}
    left = sorted(
        set(range(6))
        - {int(json.loads(line)["id"][-6:], 16) for line in open_lines(directory / "output.jsonl")}
    )
    line = {
        "id": f"batch_req_{identity}{left[0]:06x}",
        "custom_id": f"r{left[0]}",
        "response": None,
        "error": error,
    }
    (directory / "errors.jsonl").write_bytes(msgspec.json.encode(line) + b"\n")
    async with World(tmp_path, serve=Gate()) as world:
        await world.until(lambda: bool(world.runner.runs[batch.id].pending))
        await world.service.cancel(batch.id)
        ended = await world.ended(batch.id)
        counts = ended.request_counts
        assert (counts.total, counts.completed, counts.failed) == (6, 2, 0)
        assert len(world.lines(ended.error_file_id)) == 4


def open_lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines()


async def test_limits_that_became_smaller_do_not_touch_what_was_accepted(tmp_path: Path) -> None:
    gate = Gate(first=1)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(5))
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.done.completed == 1)
    small = runner_module.Limits(lines=2, line_bytes=10, single_model=True)
    async with World(tmp_path, limits=small) as world:
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.COMPLETED
        assert ended.request_counts.completed == 5


async def test_a_batch_made_while_the_server_begins_is_driven_once(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        file = await world.upload(many(5))
    world = World(tmp_path)
    await world.database.open()
    await world.files.open()
    starting = asyncio.create_task(world.runner.start())
    wanted = CreateBatch(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    batch = await world.service.create(wanted)
    await starting
    run = world.runner.runs[batch.id]
    assert world.runner.add(run.stored) is run
    assert (await world.ended(batch.id)).request_counts.completed == 5
    assert len(world.slots.asked) == 5
    await world.__aexit__()


async def test_a_batch_made_while_the_server_ends_is_left_to_the_next(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        file = await world.upload(many(3))
        await world.runner.stop()
        wanted = CreateBatch(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        batch = await world.service.create(wanted)
        assert not world.slots.asked
    async with World(tmp_path) as world:
        assert (await world.ended(batch.id)).status is BatchStatus.COMPLETED


async def test_left_over_directories_go_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "batches/batch_gone").mkdir(parents=True)
    (tmp_path / "batches/lost+found").mkdir()
    (tmp_path / "files/lost+found").mkdir(parents=True)
    (tmp_path / "files/file-gone").touch()
    async with World(tmp_path):
        assert [each.name for each in (tmp_path / "batches").iterdir()] == ["lost+found"]
        assert [each.name for each in (tmp_path / "files").iterdir()] == ["lost+found"]


async def test_lines_that_wait_for_another_try_end_with_a_cancelled_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.batch.feed._SERVER_ERROR_PAUSE_S", 3600)

    async def serve(_: str, __: dict[str, Any]) -> tuple[int, bytes]:
        return 500, b""

    async with World(tmp_path, serve=serve) as world:
        batch = await world.submit(many(5))
        await world.until(lambda: len(world.slots.asked) == 5)
        await world.service.cancel(batch.id)
        ended = await world.ended(batch.id)
        assert ended.status is BatchStatus.CANCELLED
        assert len(world.lines(ended.error_file_id)) == 5
