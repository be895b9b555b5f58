"""Many clients at once: one load for all of them, and turns for models that do not fit together."""

import asyncio
import itertools
import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer, starts_of
from tests.support.recorder import Recorder
from tests.support.server import ServerProcess
from tests.support.wait import wait_until, wait_until_async

LARGE_DEVICE = '[[devices.simulated]]\nmemory = "8GiB"\n'
ONE_DEVICE = '[[devices.simulated]]\nmemory = "1256MiB"\n'
CLIENTS = 500
DEFAULT_QUEUE = 256


@dataclass(frozen=True)
class Reply:
    """What came back on a connection of its own."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


async def ask(server: ServerProcess, model: str, **fields: object) -> Reply:
    """A request as cheap as can be: the machine belongs to the server."""
    body = json.dumps({"model": model, "messages": [], **fields}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + body)
        told, _, content = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, *lines = told.decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return Reply(int(first.split()[1]), {name.lower(): value for name, value in pairs}, content)


async def crowd(server: ServerProcess, model: str) -> list[asyncio.Task[Reply]]:
    """Five hundred requests that have all reached the server."""
    tasks = [asyncio.create_task(ask(server, model)) for _ in range(CLIENTS)]

    async def all_are_there() -> bool:
        waiting = (await asyncio.to_thread(server.model, model))["waiting"]
        return bool(waiting + sum(task.done() for task in tasks) == CLIENTS)

    await wait_until_async(all_are_there, 60, "all requests are at the server")
    return tasks


@pytest.mark.parametrize("limit", [1024, None], ids=["usual-file-limit", "any-file-limit"])
async def test_five_hundred_requests_for_a_cold_model_cause_one_start_and_are_all_answered(
    make_server: MakeServer, make_model: MakeModel, limit: int | None
) -> None:
    prefix = [] if limit is None else ["prlimit", f"--nofile={limit}:"]
    server = await asyncio.to_thread(
        make_server, LARGE_DEVICE + f"[slots]\nmax_queue = {CLIENTS}\n", prefix=prefix
    )
    path = make_model("m", waits=True)
    server.add_model("m", path)
    tasks = await crowd(server, "m")
    assert not any(task.done() for task in tasks)
    (path / "go").touch()
    answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * CLIENTS
    assert starts_of(path) == 1
    assert server.model("m")["requests_total"] == CLIENTS


async def test_whom_the_queue_cannot_take_is_refused_in_one_way_and_nobody_is_lost(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = await asyncio.to_thread(make_server, LARGE_DEVICE)
    path = make_model("m", waits=True)
    server.add_model("m", path)
    tasks = await crowd(server, "m")
    assert sum(task.done() for task in tasks) == CLIENTS - DEFAULT_QUEUE
    (path / "go").touch()
    answers = await asyncio.gather(*tasks)
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) == CLIENTS - DEFAULT_QUEUE
    assert sum(answer.status == 200 for answer in answers) == DEFAULT_QUEUE
    (error,) = {tuple(sorted(answer.error.items())) for answer in refused}
    assert dict(error)["code"] == "queue_full"
    assert f"{DEFAULT_QUEUE} requests wait for 'm' already" in dict(error)["message"]
    (patience,) = {answer.headers["retry-after"] for answer in refused}
    assert int(patience) >= 1
    assert starts_of(path) == 1


async def test_a_failed_load_tells_five_hundred_the_same(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = await asyncio.to_thread(
        make_server, LARGE_DEVICE + f"[slots]\nmax_queue = {CLIENTS}\n"
    )
    path = make_model("m", waits=True, fails="oom")
    server.add_model("m", path)
    tasks = await crowd(server, "m")
    (path / "go").touch()
    answers = await asyncio.gather(*tasks)
    assert {answer.status for answer in answers} == {503}
    (error,) = {tuple(sorted(answer.error.items())) for answer in answers}
    assert dict(error)["code"] == "model_load_failed"
    assert "CUDA out of memory" in dict(error)["message"]
    (patience,) = {answer.headers["retry-after"] for answer in answers}
    assert int(patience) >= 1
    assert starts_of(path) == 1


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One request and its answer; wall clock, in seconds."""

    model: str
    status: int
    asked: float
    answered: float


async def closed_loop(server: ServerProcess, model: str, turns: list[Turn], until: float) -> None:
    """Ask again as soon as the answer is there."""
    while time.time() < until:
        asked = time.time()
        status = (await ask(server, model, max_tokens=4)).status
        turns.append(Turn(model=model, status=status, asked=asked, answered=time.time()))


def swaps_within(turn: Turn, swaps: list[dict[str, Any]]) -> int:
    times = [datetime.fromisoformat(swap["at"]).timestamp() for swap in swaps]
    return sum(turn.asked <= at <= turn.answered for at in times)


@pytest.mark.parametrize("clients", [(3, 3), (12, 1)], ids=["even", "twelve-against-one"])
async def test_two_models_that_do_not_fit_together_take_turns_under_load(
    make_server: MakeServer, make_model: MakeModel, clients: tuple[int, int]
) -> None:
    max_wait_s, load_s, running_s = 1.0, 0.2, 15.0
    config = f'[slots]\nmax_wait = "{max_wait_s}s"\nmin_loaded = "0.2s"\n'
    server = await asyncio.to_thread(make_server, ONE_DEVICE + config)
    paths = {name: make_model(name, load_s=load_s, token_s=0.02) for name in ("a", "b")}
    for name, path in paths.items():
        server.add_model(name, path, memory_bytes=600 * MIB)
    recorder = await asyncio.to_thread(Recorder, server)
    turns: list[Turn] = []
    async with asyncio.TaskGroup() as group:
        until = time.time() + running_s
        for name, count in zip(paths, clients, strict=True):
            for _ in range(count):
                group.create_task(closed_loop(server, name, turns, until))

    assert {turn.status for turn in turns} == {200}
    swaps = recorder.of("swap")
    loads = sum(starts_of(path) for path in paths.values())
    wait_until(lambda: len(recorder.of("swap")) >= loads - 1)
    # Each gets the device again and again, and in turn.
    assert len(swaps) >= 3
    assert all(earlier["model"] != later["model"] for earlier, later in itertools.pairwise(swaps))
    for name in paths:
        waits = [turn.answered - turn.asked for turn in turns if turn.model == name]
        assert len(waits) >= 3
        # Until it is due, the requests in flight, one swap, and the time of a busy machine.
        slowest = max(swap["duration_s"] for swap in swaps)
        assert max(waits) < 2 * max_wait_s + 2 * slowest + 3.0
    # Who asks while its model is being drained waits for that model's next turn at most.
    assert max(swaps_within(turn, swaps) for turn in turns) <= 2
