"""Batches through the whole server, with the stock SDK."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Batch

from tests.stub.conftest import MakeModel, MakeServer
from tests.support.server import ServerProcess
from tests.support.wait import wait_until, wait_until_async

GIB_16 = '[[devices.simulated]]\nmemory = "16GiB"\n'


def chat_line(custom_id: str, model: str = "a", text: str = "Hi") -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(lines: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def results(client: OpenAI, file_id: str | None) -> dict[str, dict[str, object]]:
    if file_id is None:
        return {}
    lines = client.files.content(file_id).read().splitlines()
    decoded = [json.loads(line) for line in lines]
    found = {line["custom_id"]: line for line in decoded}
    assert len(found) == len(decoded)
    return found


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(GIB_16)
    for name in ("a", "b"):
        server.add_model(name, make_model(name))
    return server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield client


def ended(client: OpenAI, batch_id: str, timeout_s: float = 60) -> str:
    final = {"completed", "failed", "expired", "cancelled"}
    wait_until(lambda: client.batches.retrieve(batch_id).status in final, timeout_s)
    return client.batches.retrieve(batch_id).status


def test_the_stock_sdk_walks_through_a_batch(client: OpenAI) -> None:
    lines = [chat_line(f"r{number}") for number in range(100)]
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    assert file.status == "processed"
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "1"},
    )
    assert batch.status == "validating"
    assert ended(client, batch.id) == "completed"
    batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (100, 100)
    assert batch.error_file_id is None
    assert batch.model == "a"
    found = results(client, batch.output_file_id)
    assert set(found) == {f"r{number}" for number in range(100)}
    assert [each.id for each in client.batches.list()] == [batch.id]
    assert {each.id for each in client.files.list()} == {file.id, batch.output_file_id}
    client.files.delete(file.id)
    assert [each.purpose for each in client.files.list()] == ["batch_output"]


def test_two_models_in_one_batch_are_loaded_once_each(
    server: ServerProcess, client: OpenAI, tmp_path: Path
) -> None:
    lines = [chat_line(f"r{number}", "ab"[number % 2]) for number in range(60)]
    file = client.files.create(file=jsonl(lines), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert ended(client, batch.id) == "completed"
    for name in ("a", "b"):
        starts = (tmp_path / "models" / name / "starts").read_text().splitlines()
        assert len(starts) == 1


def test_every_bad_line_is_named_before_anything_runs(client: OpenAI) -> None:
    good = chat_line("r1")
    body = dict(good["body"])  # type: ignore[call-overload]
    bad = [
        json.dumps(good),
        "{broken",
        json.dumps({**good, "custom_id": "r1"}),
        json.dumps({**good, "custom_id": "r4", "url": "/v1/embeddings"}),
        json.dumps({**good, "custom_id": "r5", "method": "GET"}),
        json.dumps({**good, "custom_id": "r6", "body": {**body, "model": "nobody"}}),
        json.dumps({**good, "custom_id": "r7", "body": {**body, "stream": True}}),
        json.dumps({"custom_id": "r8"}),
    ]
    file = client.files.create(file="\n".join(bad).encode(), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert ended(client, batch.id) == "failed"
    errors = client.batches.retrieve(batch.id).errors
    assert errors is not None
    assert errors.data is not None
    assert [(each.line, each.code, each.param) for each in errors.data] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_url", "url"),
        (5, "invalid_method", "method"),
        (6, "model_not_found", "body.model"),
        (7, "streaming_unsupported", "body.stream"),
        (8, "missing_required_parameter", "method"),
        (8, "missing_required_parameter", "url"),
        (8, "missing_required_parameter", "body"),
    ]


def submit(client: OpenAI, lines: list[dict[str, object]], **given: object) -> Batch:
    file = client.files.create(file=jsonl(lines), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **given,  # type: ignore[arg-type]
    )


async def test_the_stock_sdk_walks_through_a_batch_asynchronously(
    server: ServerProcess, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl([chat_line(f"r{number}") for number in range(20)]))
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        file = await client.files.create(
            file=source,
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert file.filename == "in.jsonl"
        assert file.bytes == source.stat().st_size
        assert file.expires_at == file.created_at + 3600
        file = await client.files.wait_for_processing(file.id)
        batch = await client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert batch.expires_at == batch.created_at + 86400

        async def is_over() -> bool:
            return (await client.batches.retrieve(batch.id)).status == "completed"

        await wait_until_async(is_over, 60)
        batch = await client.batches.retrieve(batch.id)
        times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert None not in times
        assert sorted(each or 0 for each in times) == list(times)
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (20, 80)
        assert batch.output_file_id is not None
        output = await client.files.retrieve(batch.output_file_id)
        assert output.expires_at == output.created_at + 7200
        content = await client.files.content(batch.output_file_id)
        assert len(content.text.strip().split("\n")) == 20
        assert [each.id async for each in client.batches.list(limit=1)] == [batch.id]
        for each in (file.id, output.id):
            assert (await client.files.delete(each)).deleted
        assert [each.id async for each in client.files.list()] == []


def test_pages_of_the_sdk(client: OpenAI) -> None:
    batches = [submit(client, [chat_line("r")]) for _ in range(5)]
    for batch in batches:
        ended(client, batch.id)
    newest_first = [batch.id for batch in batches][::-1]
    assert [each.id for each in client.batches.list(limit=2)] == newest_first
    page = client.batches.list(after=newest_first[1], limit=2)
    assert [each.id for each in page.data] == newest_first[2:4]
    assert page.has_more
    inputs = [batch.input_file_id for batch in batches]
    found = client.files.list(purpose="batch", order="asc", limit=2)
    assert [each.id for each in found] == inputs
    assert len(list(client.files.list(purpose="batch_output", limit=2))) == 5


def test_errors_are_the_ones_that_clients_know(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="No such File object: file-x"):
        client.files.retrieve("file-x")
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl") as no_jsonl:
        client.files.create(file=b"a,b\n1,2\n", purpose="batch")
    assert no_jsonl.value.code is None
    file = client.files.create(file=b"a,b\n", purpose="user_data")
    for given, param, code in (
        ({"endpoint": "/v1/x"}, "endpoint", "invalid_value"),
        ({"completion_window": "5m"}, "completion_window", "invalid_value"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({}, "input_file_id", None),
    ):
        wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **given}
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(input_file_id=file.id, **wanted)  # type: ignore[arg-type]
        assert (refused.value.param, refused.value.code) == (param, code)
        assert refused.value.type == "invalid_request_error"


def test_cancel_keeps_answers_and_lists_the_rest(
    server: ServerProcess, client: OpenAI, make_model: MakeModel
) -> None:
    server.add_model("slow", make_model("slow", token_s=0.05))
    batch = submit(client, [chat_line(f"r{number}", "slow") for number in range(3000)])

    def completed() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts.completed if counts else 0

    wait_until(completed, 60)
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    assert ended(client, batch.id) == "cancelled"
    batch = client.batches.retrieve(batch.id)
    output, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert not output.keys() & errors.keys()
    assert output.keys() | errors.keys() == {f"r{number}" for number in range(3000)}
    assert all(
        line["response"] is None and line["error"]["code"] == "batch_cancelled"  # type: ignore[index]
        for line in errors.values()
    )
    assert batch.request_counts is not None
    assert batch.request_counts.completed == len(output)
    assert batch.request_counts.failed == 0
    assert client.batches.cancel(batch.id).status == "cancelled"
    done = submit(client, [chat_line("r")])
    ended(client, done.id)
    with pytest.raises(openai.ConflictError, match="status 'completed'") as refused:
        client.batches.cancel(done.id)
    assert (refused.value.code, refused.value.param) == (None, None)


def test_a_window_that_ends_while_the_server_is_down(
    server: ServerProcess, client: OpenAI, make_model: MakeModel
) -> None:
    server.add_model("slow", make_model("slow", token_s=0.05))
    batch = submit(client, [chat_line(f"r{number}", "slow") for number in range(2000)])

    def completed() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts.completed if counts else 0

    wait_until(completed, 60)
    server.kill()
    with sqlite3.connect(server.paths.database) as store:
        store.execute(
            "UPDATE batches SET object = json_set(object, '$.batch.expires_at', ?) WHERE id = ?",
            (batch.created_at + 1, batch.id),
        )
    store.close()
    server.start()
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert ended(client, batch.id) == "expired"
        batch = client.batches.retrieve(batch.id)
        output = results(client, batch.output_file_id)
        errors = results(client, batch.error_file_id)
        assert output.keys() | errors.keys() == {f"r{number}" for number in range(2000)}
        assert len(output) + len(errors) == 2000
        codes = {line["error"]["code"] for line in errors.values()}  # type: ignore[index]
        assert codes == {"batch_expired"}
        assert batch.expired_at is not None
        assert batch.request_counts is not None
        assert batch.request_counts.completed == len(output) > 0


def test_embeddings(server: ServerProcess, client: OpenAI, make_model: MakeModel) -> None:
    server.add_model("e", make_model("e"), task="embed")
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "e", "input": "Hi"},
        }
        for number in range(10)
    ]
    file = client.files.create(file=jsonl(lines), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    assert ended(client, batch.id) == "completed"
    found = results(client, client.batches.retrieve(batch.id).output_file_id)
    assert found.keys() == {str(number) for number in range(10)}


def test_a_model_that_is_removed_meanwhile(
    server: ServerProcess, client: OpenAI, make_model: MakeModel
) -> None:
    server.add_model("slow", make_model("slow", token_s=0.05, waits=True))
    lines = [chat_line(f"r{number}", "slow") for number in range(5)]
    batch = submit(client, lines)
    wait_until(lambda: server.model("slow")["state"] in {"starting", "loading"}, 30)
    removed = server.admin("DELETE", "/models/slow")
    assert removed.is_success, removed.text
    assert ended(client, batch.id) == "completed"
    batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is None
    found = results(client, batch.error_file_id)
    assert len(found) == 5
    for line in found.values():
        assert line["response"]["status_code"] == 404  # type: ignore[index]


def test_limits_by_settings(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(
        f"{GIB_16}[batches]\nsingle_model = true\nmax_lines = 5\nmax_line = 1000\nmax_file = 5000\n"
    )
    for name in ("a", "b"):
        server.add_model(name, make_model(name))
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as too_large:
            submit(client, [chat_line(f"r{number}") for number in range(100)])
        assert too_large.value.status_code == 413
        for lines, code, line in (
            ([chat_line("r1"), chat_line("r2", "b")], "model_mismatch", 2),
            ([chat_line("r1"), chat_line("r2", text="x" * 1000)], "line_too_long", 2),
            ([chat_line(f"r{number}") for number in range(6)], "too_many_tasks", None),
        ):
            batch = submit(client, lines)
            assert ended(client, batch.id) == "failed"
            errors = client.batches.retrieve(batch.id).errors
            assert errors is not None
            assert errors.data is not None
            assert [(each.code, each.line) for each in errors.data] == [(code, line)]
