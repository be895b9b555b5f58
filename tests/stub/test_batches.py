"""Batches through the whole server, with the stock SDK."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.stub.conftest import MakeModel, MakeServer
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

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
