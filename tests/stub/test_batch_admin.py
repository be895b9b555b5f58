"""What the owner sees of batches, and does with them, through the management API."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stub.conftest import MakeModel, MakeServer
from tests.support.server import ServerProcess
from tests.support.wait import wait_until
from tui.client.api import ApiError
from tui.client.download import save
from tui.client.http import HttpClient
from tui.client.target import Target
from tui.state.view import View, apply

CONFIG = '[[devices.simulated]]\nmemory = "16GiB"\n[batches]\nmax_concurrency = 4\n'


def requests(count: int, **body: Any) -> bytes:
    wanted = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": wanted | body,
        }
        for number in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def submit(server: ServerProcess, content: bytes) -> str:
    with httpx.Client(base_url=f"{server.url}/v1") as client:
        uploaded = client.post("/files", data={"purpose": "batch"}, files={"file": content})
        wanted = {
            "input_file_id": uploaded.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        return str(client.post("/batches", json=wanted).json()["id"])


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    server.add_model("m", make_model("m", token_s=0.02))
    return server


def progress(server: ServerProcess, batch_id: str) -> dict[str, Any]:
    return dict(server.admin("GET", f"/batches/{batch_id}").json())


def has_status(server: ServerProcess, batch_id: str, status: str) -> bool:
    return bool(progress(server, batch_id)["batch"]["status"] == status)


def test_a_batch_is_paused_goes_on_and_is_followed_without_polling(server: ServerProcess) -> None:
    events = server.events()
    assert next(events)["snapshot"]["batches"] == []
    batch_id = submit(server, requests(40))
    heard: list[dict[str, Any]] = []

    def follow_until(what: str, value: object) -> None:
        for event in events:
            if event["type"] == "batch":
                heard.append(event["batch"])
                if value in (heard[-1].get(what), heard[-1]["batch"].get(what)):
                    return

    follow_until("status", "in_progress")
    wait_until(lambda: progress(server, batch_id)["batch"]["request_counts"]["completed"] > 0, 30)
    assert server.admin("POST", f"/batches/{batch_id}/pause").json()["is_paused"] is True
    follow_until("is_paused", True)
    wait_until(lambda: progress(server, batch_id)["in_flight"] == 0)
    counts = progress(server, batch_id)["batch"]["request_counts"]
    assert counts["completed"] < 40
    assert server.admin("POST", f"/batches/{batch_id}/resume").json()["is_paused"] is False
    follow_until("status", "completed")
    assert heard[-1]["batch"]["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    done = [each["batch"]["request_counts"]["completed"] for each in heard]
    assert done == sorted(done)
    # What was heard last is what a new follower, and the next server, begin with.
    assert server.state()["batches"] == heard[-1:]
    server.stop()
    server.start()
    assert server.state()["batches"] == heard[-1:]
    assert server.admin("GET", "/batches").json() == heard[-1:]


def test_batches_are_listed_in_pages_and_what_cannot_be_done_is_said(
    server: ServerProcess,
) -> None:
    ids = [submit(server, requests(1)) for _ in range(3)]
    for each in ids:
        wait_until(lambda each=each: has_status(server, each, "completed"), 30)
    first = server.admin("GET", "/batches?limit=2").json()
    assert [each["batch"]["id"] for each in first] == [ids[2], ids[1]]
    rest = server.admin("GET", f"/batches?limit=2&after={ids[1]}").json()
    assert [each["batch"]["id"] for each in rest] == [ids[0]]
    for path, status in (
        (f"/batches/{ids[0]}/pause", 409),
        (f"/batches/{ids[0]}/cancel", 409),
        ("/batches/none/cancel", 404),
        ("/batches/none/resume", 404),
        (f"/batches/{ids[0]}/retry", 409),
        ("/batches/none/retry", 404),
    ):
        refused = server.admin("POST", path)
        assert (refused.status_code, bool(refused.json()["error"]["message"])) == (status, True)
    assert server.admin("GET", "/batches?limit=0").status_code == 400
    assert server.admin("GET", "/batches/none/failures").status_code == 404


def test_reasons_of_failed_lines_and_of_cancelled_ones(server: ServerProcess) -> None:
    batch_id = submit(server, requests(200))
    wait_until(lambda: progress(server, batch_id)["batch"]["request_counts"]["completed"] > 0, 30)
    assert server.admin("GET", f"/batches/{batch_id}/failures").json() == []
    cancelled = server.admin("POST", f"/batches/{batch_id}/cancel")
    assert cancelled.json()["batch"]["status"] in {"cancelling", "cancelled"}
    wait_until(lambda: has_status(server, batch_id, "cancelled"), 30)
    failures = server.admin("GET", f"/batches/{batch_id}/failures?limit=3").json()
    assert [each["code"] for each in failures] == ["batch_cancelled"] * 3


async def test_the_terminal_ui_follows_and_holds_a_batch(server: ServerProcess) -> None:
    client = HttpClient(Target(socket=str(server.paths.admin_socket)))
    view = View()
    try:
        batch_id = await asyncio.to_thread(submit, server, requests(400))
        assert (await client.act_on_batch(batch_id, "pause")).is_paused
        async for heard in client.events(None):
            if heard.event is not None:
                view = apply(view, heard.event, heard.seq)
            known = view.batches.get(batch_id)
            if known is not None and known.is_paused:
                break
        assert not (await client.act_on_batch(batch_id, "resume")).is_paused
        assert await client.batch_failures(batch_id) == []
        await client.act_on_batch(batch_id, "cancel")
        with pytest.raises(ApiError) as raised:
            await client.act_on_batch("none", "cancel")
        assert raised.value.status == 404
    finally:
        await client.aclose()


async def test_the_terminal_ui_repeats_failed_lines_and_fetches_answers(
    server: ServerProcess, tmp_path: Path
) -> None:
    client = HttpClient(Target(socket=str(server.paths.admin_socket)))

    async def ended(batch_id: str) -> dict[str, Any]:
        def is_over() -> bool:
            return progress(server, batch_id)["batch"]["status"] in {"completed", "cancelled"}

        await asyncio.to_thread(wait_until, is_over, 30)
        return dict(progress(server, batch_id)["batch"])

    try:
        given = requests(200)
        first = await asyncio.to_thread(submit, server, given)
        with pytest.raises(ApiError, match="not over"):
            await client.retry_batch(first)
        await asyncio.to_thread(
            wait_until, lambda: progress(server, first)["batch"]["request_counts"]["completed"], 30
        )
        await client.act_on_batch(first, "cancel")
        cancelled = await ended(first)
        counts = cancelled["request_counts"]
        rest = 200 - counts["completed"]
        made = (await client.retry_batch(first)).batch
        assert made.metadata == {"retry_of": first}
        again = await ended(made.id)
        assert again["request_counts"] == {"total": rest, "completed": rest, "failed": 0}
        answered = set()
        for number, batch in enumerate((cancelled, again)):
            target = tmp_path / f"answers-{number}"
            pieces = client.file_content(batch["output_file_id"])
            await save(pieces, target, lambda _: None)
            lines = await asyncio.to_thread(target.read_bytes)
            ids = [json.loads(line)["custom_id"] for line in lines.splitlines()]
            assert not answered & set(ids)
            answered |= set(ids)
        assert answered == {f"r{number}" for number in range(200)}
        with pytest.raises(ApiError, match="No such File"):
            await save(client.file_content("file-none"), tmp_path / "none", lambda _: None)
    finally:
        await client.aclose()
