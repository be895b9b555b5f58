"""Batches over HTTP, as clients have them."""

import json
from collections.abc import Sequence
from typing import Any

import httpx

from tests.support.batches import jsonl
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CHAT = "/v1/chat/completions"
FINAL = {"completed", "failed", "expired", "cancelled"}


def submit(server: ServerProcess, requests: Sequence[dict[str, Any]], endpoint: str = CHAT) -> str:
    """The id of a batch over these lines."""
    form = {"files": {"file": ("in.jsonl", jsonl(requests))}, "data": {"purpose": "batch"}}
    uploaded = httpx.post(f"{server.url}/v1/files", timeout=60, **form)  # type: ignore[arg-type]
    assert uploaded.status_code == 200, uploaded.text
    wanted = {
        "input_file_id": uploaded.json()["id"],
        "endpoint": endpoint,
        "completion_window": "24h",
    }
    created = httpx.post(f"{server.url}/v1/batches", json=wanted, timeout=60)
    assert created.status_code == 200, created.text
    return str(created.json()["id"])


def find(server: ServerProcess, batch_id: str) -> dict[str, Any]:
    """The Batch object."""
    return dict(httpx.get(f"{server.url}/v1/batches/{batch_id}", timeout=60).json())


def problem_of(server: ServerProcess, batch_id: str) -> str:
    """What hinders it."""
    return str(server.admin("GET", f"/batches/{batch_id}").json()["problem"])


def results(server: ServerProcess, file_id: str | None) -> dict[str, dict[str, Any]]:
    """Lines of a result file by custom_id; none is there twice."""
    if file_id is None:
        return {}
    text = httpx.get(f"{server.url}/v1/files/{file_id}/content", timeout=60).content
    found = [json.loads(each) for each in text.splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found), "a line is there twice"
    return by_id


def counts_of(server: ServerProcess, batch_id: str) -> int:
    """Lines that are counted as answered or failed."""
    return _look(server, batch_id)[0]


def is_over(server: ServerProcess, batch_id: str) -> bool:
    """Whether nothing will change any more."""
    return _look(server, batch_id)[1]


def wait_for(server: ServerProcess, batch_id: str, count: int, timeout_s: float = 300.0) -> None:
    """Until so many lines are counted, or the batch is over."""

    def is_so() -> bool:
        counted, over = _look(server, batch_id)
        return over or counted >= count

    wait_until(is_so, timeout_s, f"{count} lines done")


def _look(server: ServerProcess, batch_id: str) -> tuple[int, bool]:
    """Over the connection that is kept: waits ask often."""
    response = server.admin("GET", f"/batches/{batch_id}")
    assert response.status_code == 200, response.text
    batch = response.json()["batch"]
    counts = batch["request_counts"]
    done = counts["completed"] + counts["failed"]
    assert done <= counts["total"] or not counts["total"]
    return done, batch["status"] in FINAL
