"""What the runner makes of what engines answer."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.batch import runner as runner_module
from appliance.batch.run import BatchRun
from appliance.engine.connection import ConnectionLostError
from appliance.errors import NotFoundError, UnavailableError
from appliance.protocol.batches import BatchStatus
from appliance.protocol.models import Task
from tests.support.batches import (
    DAY_S,
    Gate,
    World,
    chat_line,
    echo,
    jsonl,
    many,
    say,
)


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
