"""What the runner does when things go wrong, or not as planned."""

import asyncio
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.batch import runner as runner_module
from appliance.batch.index import LineIndex, index_file
from appliance.batch.journal import Journal
from appliance.batch.run import BatchRun
from appliance.batch.service import CreateBatch
from appliance.engine.connection import ConnectionLostError
from appliance.errors import ConflictError, NotFoundError, UnavailableError
from appliance.protocol.batches import BatchStatus
from appliance.protocol.models import Task
from appliance.store.database import Database, StoreError
from tests.support.batches import CHAT, FakeClock, World, chat_line, echo, jsonl, say

DAY_S = 86400


def many(count: int, **given: Any) -> bytes:
    return jsonl([chat_line(f"r{n}", **given) for n in range(count)])


class Gate:
    """Answers once it is open; the first ones at once."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        self.asked += 1
        if self.asked > self.first:
            await self.go.wait()
        return await echo(path, body)


async def test_good_and_refused_lines_are_in_one_file_each(tmp_path: Path) -> None:
    lines = [chat_line(f"r{n}", text="bad" if n % 3 == 0 else None) for n in range(30)]
    async with World(tmp_path) as world:
        batch = await world.ended((await world.submit(jsonl(lines))).id)
        assert batch.status is BatchStatus.COMPLETED
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (30, 20, 10)
        refused = world.lines(batch.error_file_id)
        assert refused.keys() == {f"r{n}" for n in range(0, 30, 3)}
        assert all(line["error"] is None for line in refused.values())
        body = refused["r0"]["response"]["body"]
        assert refused["r0"]["response"]["status_code"] == 400
        assert body["error"]["type"] == "invalid_request_error"


async def test_a_file_that_would_be_empty_is_none(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        good = await world.ended((await world.submit(many(3))).id)
        assert good.error_file_id is None
        bad = await world.ended((await world.submit(many(3, text="bad"))).id)
        assert bad.status is BatchStatus.COMPLETED
        assert bad.output_file_id is None
        assert len(world.lines(bad.error_file_id)) == 3


async def test_a_torn_output_without_a_whole_line_is_no_output(tmp_path: Path) -> None:
    gate = Gate()
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(3, text="bad"))
        await world.until(lambda: gate.asked == 3)
    torn = tmp_path / "batches" / batch.id / "output.jsonl"
    torn.write_bytes(b'{"id":"batch_req_')
    async with World(tmp_path) as world:
        ended = await world.ended(batch.id)
        assert ended.output_file_id is None
        assert ended.request_counts.failed == 3


async def test_answers_that_come_during_a_write_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdatasync
    loop = asyncio.get_running_loop()
    answered = asyncio.Event()

    def slow(descriptor: int) -> None:
        if not answered.is_set():
            loop.call_soon_threadsafe(gate.go.set)
            asyncio.run_coroutine_threadsafe(answered.wait(), loop).result(10)
        real(descriptor)

    gate = Gate(first=1)
    async with World(tmp_path, serve=gate) as world:
        add_result = BatchRun.add_result

        def noted(run: BatchRun, number: int, *given: Any, **named: Any) -> None:
            add_result(run, number, *given, **named)
            if run.left == 0:
                answered.set()

        monkeypatch.setattr(BatchRun, "add_result", noted)
        monkeypatch.setattr(os, "fdatasync", slow)
        lines = [chat_line(f"r{n}", text=("bad", None)[n % 2]) for n in range(12)]
        batch = await world.ended((await world.submit(jsonl(lines))).id)
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (12, 6, 6)
        assert batch.usage is not None
        assert batch.usage.total_tokens == 30


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


async def test_an_answer_that_is_no_json_is_tried_again_and_then_told(tmp_path: Path) -> None:
    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        text = body["messages"][0]["content"]
        answers = {"r1": b"<html>", "r2": b'{"a":\n"\xff"}', "r3": b""}
        return (200, answers[text]) if text in answers else await say(text)

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(6))).id)
        assert ended.status is BatchStatus.COMPLETED
        errors = world.lines(ended.error_file_id)
        assert errors.keys() == {"r1", "r2", "r3"}
        assert {line["response"]["status_code"] for line in errors.values()} == {502}
        assert len(world.slots.asked) == 3 + 3 * 3


async def test_an_answer_of_several_lines_stays_one_result(tmp_path: Path) -> None:
    async def serve(_: str, __: dict[str, Any]) -> tuple[int, bytes]:
        return 200, b'{\n  "text": "a\\nb",\r\n  "n": 1.0}\n'

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(2))).id)
        answer = world.lines(ended.output_file_id)["r1"]["response"]["body"]
        assert answer == {"text": "a\nb", "n": 1.0}


async def test_a_line_that_breaks_the_server_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if body["messages"][0]["content"] == "r2":
            raise RuntimeError("a bug")
        return await echo(path, body)

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(5))).id)
        assert world.lines(ended.error_file_id).keys() == {"r2"}
        assert ended.request_counts.completed == 4


async def test_an_engine_that_dies_of_one_line_costs_only_that_line(tmp_path: Path) -> None:
    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if body["messages"][0]["content"] == "r3":
            raise ConnectionLostError("gone")
        return await echo(path, body)

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(40))).id)
        errors = world.lines(ended.error_file_id)
        assert errors.keys() == {"r3"}
        assert errors["r3"]["response"]["status_code"] == 503
        # The answers to the others show that the engines were sound.
        assert world.slots.excused == world.slots.deaths == 3


async def test_an_engine_that_answers_nothing_is_at_fault_itself(tmp_path: Path) -> None:
    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        raise ConnectionLostError("gone")

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(4))).id)
        assert ended.request_counts.failed == 4
        assert world.slots.excused == 0


async def test_no_engine_is_no_failure_of_a_line(tmp_path: Path) -> None:
    tries = 0

    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise UnavailableError("no engine yet", retry_after_s=0.01)
        return await echo(path, body)

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(5))).id)
        assert ended.request_counts.completed == 5
        assert ended.error_file_id is None


async def test_two_models_in_one_batch_and_strictness(tmp_path: Path) -> None:
    lines = [chat_line(f"r{n}", "ab"[n % 2]) for n in range(20)]
    async with World(tmp_path) as world:
        ended = await world.ended((await world.submit(jsonl(lines))).id)
        assert ended.request_counts.completed == 20
        assert ended.model is None
        assert sorted(world.slots.leases) == ["a"] * 10 + ["b"] * 10
    strict = runner_module.Limits(lines=1000, line_bytes=2**20, single_model=True)
    async with World(tmp_path, limits=strict) as world:
        ended = await world.ended((await world.submit(jsonl(lines))).id)
        assert ended.status is BatchStatus.FAILED
        assert ended.errors is not None
        assert [each.line for each in ended.errors.data] == list(range(2, 21, 2))
        assert {each.code for each in ended.errors.data} == {"model_mismatch"}


async def test_embeddings_batch(tmp_path: Path) -> None:
    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        assert path == "/v1/embeddings"
        return 200, b'{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":2,"total_tokens":2}}'

    url = "/v1/embeddings"
    lines = [
        {"custom_id": str(n), "method": "POST", "url": url, "body": {"model": "e", "input": "x"}}
        for n in range(4)
    ]
    async with World(tmp_path, serve=serve, models={"e": Task.EMBED}) as world:
        ended = await world.ended((await world.submit(jsonl(lines), endpoint=url)).id)
        assert ended.request_counts.completed == 4
        assert ended.model == "e"
        assert ended.usage is not None
        assert (ended.usage.input_tokens, ended.usage.total_tokens) == (8, 8)


async def test_pause_and_resume(tmp_path: Path) -> None:
    gate = Gate(first=1)
    async with World(tmp_path, serve=gate) as world:
        batch = await world.submit(many(60))
        await world.until(lambda: gate.asked > 1)
        assert (await world.service.pause(batch.id, is_paused=True)).is_paused
        gate.go.set()
        run = world.runner.runs[batch.id]
        await world.until(lambda: not run.in_flight)
        assert run.left
    async with World(tmp_path) as world:
        run = world.runner.runs[batch.id]
        await world.until(lambda: run.is_open)
        assert not world.slots.asked
        await world.service.pause(batch.id, is_paused=False)
        assert (await world.ended(batch.id)).request_counts.completed == 60


async def test_output_files_expire_from_their_own_creation_on(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        expiry = {"anchor": "created_at", "seconds": 7200}
        batch = await world.submit(many(1), output_expires_after=expiry)
        usual = await world.submit(many(1))
        for each, life_s in ((batch, 7200), (usual, 30 * DAY_S)):
            ended = await world.ended(each.id)
            assert ended.output_file_id is not None
            file = await world.files.find(ended.output_file_id)
            assert file.purpose == "batch_output"
            assert file.expires_at == file.created_at + life_s
        world.time.pass_by(7201)
        await world.files.delete_expired()
        assert ended.output_file_id is not None
        await world.files.find(ended.output_file_id)
        gone = (await world.service.find(batch.id)).output_file_id
        assert gone is not None
        with pytest.raises(NotFoundError):
            await world.files.find(gone)


async def test_left_over_directories_go_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "batches/batch_gone").mkdir(parents=True)
    (tmp_path / "batches/lost+found").mkdir()
    (tmp_path / "files/lost+found").mkdir(parents=True)
    (tmp_path / "files/file-gone").touch()
    async with World(tmp_path):
        assert [each.name for each in (tmp_path / "batches").iterdir()] == ["lost+found"]
        assert [each.name for each in (tmp_path / "files").iterdir()] == ["lost+found"]


async def test_errors_of_a_living_engine_do_not_hold_up_the_other_lines(tmp_path: Path) -> None:
    tries: dict[str, int] = {}

    async def serve(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        text = body["messages"][0]["content"]
        tries[text] = tries.get(text, 0) + 1
        number = int(text[1:])
        if number % 10 == 0 or (number % 10 == 1 and tries[text] < 3):
            return 500, b'{"error":{"message":"boom","code":500}}'
        return await echo(path, body)

    async with World(tmp_path, serve=serve) as world:
        ended = await world.ended((await world.submit(many(400))).id)
        errors = world.lines(ended.error_file_id)
        assert errors.keys() == {f"r{n}" for n in range(0, 400, 10)}
        assert {line["response"]["status_code"] for line in errors.values()} == {500}
        assert ended.request_counts.completed == 360
        assert all(tries[f"r{n}"] == 3 for n in range(400) if n % 10 < 2)
        assert all(tries[f"r{n}"] == 1 for n in range(400) if n % 10 > 1)


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
