"""Odd files and odd requests: each is answered in time, none with a 5xx."""

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.stub.conftest import MakeModel, MakeServer
from tests.support.server import ServerProcess
from tests.support.wait import wait_until
from tests.unit.batch.test_batch_index import mutated

FILES = 200
REQUESTS = 400
ANSWER_S = 30.0
# Lines that end their engine are tried alone, beside those of other batches.
FINISH_S = 150.0
FINAL = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server('[[devices.simulated]]\nmemory = "8GiB"\n')
    server.add_model("a", make_model("a", token_s=0))
    return server


def source() -> bytes:
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "a", "messages": [], "max_tokens": 4},
        }
        for number in range(4)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def judge(client: httpx.Client, content: bytes) -> str:
    """What became of a file, after a look at whether that is right."""
    uploaded = client.post("/files", data={"purpose": "batch"}, files={"file": content})
    if uploaded.status_code == 400:
        return "refused"
    assert uploaded.status_code == 200, uploaded.text
    wanted = {
        "input_file_id": uploaded.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    created = client.post("/batches", json=wanted)
    assert created.status_code == 200, created.text
    path = f"/batches/{created.json()['id']}"
    wait_until(lambda: client.get(path).json()["status"] in FINAL, FINISH_S, "batch over")
    batch = client.get(path).json()
    if batch["status"] == "failed":
        lines = content.count(b"\n") + 1
        assert batch["errors"]["data"]
        for error in batch["errors"]["data"]:
            if error["code"] not in {"empty_file", "too_many_tasks"}:
                assert 1 <= error["line"] <= lines
        assert batch["output_file_id"] is None
        assert batch["error_file_id"] is None
    else:
        counts = batch["request_counts"]
        assert counts["completed"] + counts["failed"] == counts["total"]
    return str(batch["status"])


def test_mutated_files(server: ServerProcess) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    files = [mutated(chance, source()) for _ in range(FILES)]

    def one(number: int) -> str:
        try:
            with httpx.Client(base_url=f"{server.url}/v1", timeout=ANSWER_S) as client:
                return judge(client, files[number])
        except BaseException as error:
            raise AssertionError(f"seed {seed}, file {number}: {files[number]!r}") from error

    with ThreadPoolExecutor(4) as pool:
        fates = list(pool.map(one, range(FILES)))
    assert {"refused", "failed", "completed"} <= set(fates)
    assert "ERROR" not in server.log.read_text()


def test_odd_requests(server: ServerProcess) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    with httpx.Client(base_url=server.url, timeout=ANSWER_S) as client:
        uploaded = client.post("/v1/files", data={"purpose": "batch"}, files={"file": source()})
        file_id = uploaded.json()["id"]
        for number in range(REQUESTS):
            given = odd_request(chance, file_id)
            answer = client.request(**given)
            assert answer.status_code < 500, (seed, number, given, answer.text)
            if answer.status_code >= 400 and answer.request.method != "HEAD":
                assert answer.json()["error"]["message"] or answer.status_code == 416
    assert "ERROR" not in server.log.read_text()


WORDS = [
    "",
    "x",
    "..",
    "%2e%2e",
    "%00",
    "%ff",
    "file-1",
    "'",
    "[",
    "9" * 400,
    "\u2028",
    "-1",
    "null",
]


def odd_request(chance: random.Random, file_id: str) -> dict[str, Any]:
    word = chance.choice([*WORDS, file_id])
    paths = ["/v1/files", "/v1/batches", "/v1/files//", f"/v1/files/{file_id}/content"]
    paths += [f"/v1/files/{word}", f"/v1/files/{word}/content"]
    paths += [f"/v1/batches/{word}", f"/v1/batches/{word}/cancel", f"/v1/batches/{word}/x/y"]
    path = chance.choice(paths)
    names = ["limit", "after", "order", "purpose", "x"]
    query = "&".join(
        f"{chance.choice(names)}={chance.choice(WORDS)}" for _ in range(chance.randrange(3))
    )
    fields = ["input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"]
    values: list[Any] = [
        None,
        1,
        "24h",
        file_id,
        "/v1/embeddings",
        [],
        {},
        {"k": 1},
        "1e400h",
        True,
    ]
    body = json.dumps({chance.choice(fields): chance.choice(values) for _ in range(5)}).encode()
    return {
        "method": chance.choice(["GET", "POST", "PUT", "HEAD", "PATCH", "OPTIONS"]),
        "url": f"{path}?{query}",
        "content": chance.choice([b"", body, body, body[:-3], bytes(100), b"[" * 9999]),
        "headers": {
            "content-type": chance.choice(
                ["application/json", "multipart/form-data; boundary=x", "x", "multipart/form-data"]
            ),
            "range": chance.choice(
                ["bytes=0-5", "bytes=-", "bytes=9-1", "x", "bytes=-" + "9" * 99]
            ),
        },
    }


def test_uploads_whose_client_goes_away_leave_nothing(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
        b"content-type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}\n'
    )
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head)
            wait_until(lambda: list(server.paths.files.iterdir()), 10, "upload begun")
        wait_until(lambda: not list(server.paths.files.iterdir()), 10, "upload gone")
