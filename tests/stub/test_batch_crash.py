"""Whatever is killed, and whenever: every line of a batch ends once, with the answer to itself."""

import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.engine.proctree import session_processes
from tests.stub.conftest import MakeModel, MakeServer
from tests.support.batch_calls import (
    counts_of,
    find,
    is_over,
    problem_of,
    results,
    submit,
    wait_for,
)
from tests.support.disk import small_disk
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = (
    '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nretry_first = "0.1s"\nretry_most = "1s"\n'
    'stop_timeout = "3s"\nmax_attempts = 10000\n[batches]\ndisk_reserve = "1MiB"\n'
)
LINES = 2000
ROUNDS = 6
REFUSED_EVERY = 10
LONGEST_LIFE_S = 2.0
Kill = Callable[[ServerProcess, int, int], int]
"""Server, rounds, seed; how many batches there were."""

pytestmark = pytest.mark.timeout(600)


def line(number: int) -> dict[str, Any]:
    said = f"{'bad request ' if number % REFUSED_EVERY == 0 else ''}line {number}."
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "a",
            "messages": [{"role": "user", "content": said}],
            "max_tokens": 2,
            "temperature": 0,
            "seed": 1,
        },
    }


def check(server: ServerProcess, batch_id: str, lines: int) -> None:
    """Every line is in one file, and its answer is the answer to it."""
    batch = find(server, batch_id)
    assert batch["status"] == "completed", batch
    output = results(server, batch["output_file_id"])
    errors = results(server, batch["error_file_id"])
    refused = {f"r{n}" for n in range(0, lines, REFUSED_EVERY)}
    assert errors.keys() == refused
    assert output.keys() == {f"r{n}" for n in range(lines)} - refused
    for number in range(lines):
        if number % REFUSED_EVERY == 0:
            assert errors[f"r{number}"]["response"]["status_code"] == 400
            continue
        body = output[f"r{number}"]["response"]["body"]
        assert json.loads(body["raw"]) == line(number)["body"]
        assert body["choices"][0]["message"]["content"] == "xx"
    counts = {"total": lines, "completed": len(output), "failed": len(errors)}
    assert batch["request_counts"] == counts
    assert batch["usage"]["total_tokens"] == 3 * len(output)
    listed = httpx.get(f"{server.url}/v1/files", timeout=60).json()["data"]
    kept = {batch["input_file_id"], batch["output_file_id"], batch["error_file_id"]}
    assert kept <= {each["id"] for each in listed}
    wait_until(lambda: not list(server.paths.batches.iterdir()), 10)


def kill_servers(server: ServerProcess, rounds: int, seed: int, lines: int = LINES) -> int:
    """Batches until the server was killed so often; how many batches there were."""
    chance = random.Random(seed)
    kills = batches = 0
    while kills < rounds:
        batch_id = submit(server, [line(n) for n in range(lines)])
        batches += 1
        known = 0
        while kills < rounds and not is_over(server, batch_id):
            assert server.process is not None
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(chance.uniform(0, LONGEST_LIFE_S))
            known = max(known, counts_of(server, batch_id))
            server.kill()
            kills += 1
            server.start()
            # What was once counted stays counted, as soon as the files were read again.
            wait_for(server, batch_id, known, 30)
        wait_for(server, batch_id, lines + 1)
        check(server, batch_id, lines)
    return batches


def kill_engines(server: ServerProcess, rounds: int, seed: int, lines: int = LINES) -> int:
    """The same for engines."""
    chance = random.Random(seed)
    kills = batches = 0
    while kills < rounds:
        batch_id = submit(server, [line(n) for n in range(lines)])
        batches += 1
        while kills < rounds:
            more = chance.randrange(1, lines // 10)
            wait_for(server, batch_id, counts_of(server, batch_id) + more)
            if is_over(server, batch_id):
                break
            kills += kill_engine(server)
        wait_for(server, batch_id, lines + 1)
        check(server, batch_id, lines)
    return batches


def kill_engine(server: ServerProcess) -> bool:
    """All its processes but the guardian; whether there was one."""
    killed = False
    for session in server.engine_pids():
        for info in session_processes(session):
            # One may end by itself, as it does when another one is killed.
            with contextlib.suppress(ProcessLookupError):
                if info.pid != session:
                    os.kill(info.pid, signal.SIGKILL)
                    killed = True
    return killed


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", token_s=0.01))
    return server


def test_the_server_may_be_killed_at_any_instant(server: ServerProcess) -> None:
    kill_servers(server, ROUNDS, random.randrange(10**6))


def test_engines_may_be_killed_at_any_instant(server: ServerProcess) -> None:
    kill_engines(server, ROUNDS, random.randrange(10**6))


def fill(file: Path, leave: int) -> None:
    """Take all of the disk but so many bytes."""
    free = os.statvfs(file.parent)
    with file.open("wb") as output:
        os.posix_fallocate(output.fileno(), 0, free.f_bavail * free.f_bsize - leave)


@pytest.mark.parametrize("reserve", ["1MiB", "0"], ids=["reserve", "last byte"])
@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "is killed"])
def test_a_full_disk_pauses_a_batch_until_there_is_room(
    tmp_path: Path,
    make_server: MakeServer,
    make_model: MakeModel,
    reserve: str,
    is_killed: bool,
) -> None:
    """The store, files and journals are all on the disk that is full."""
    home = tmp_path / "small"
    with small_disk(home, "24m"):
        server = make_server(CONFIG.replace("1MiB", reserve), home=home)
        try:
            server.add_model("a", make_model("a", token_s=0.02))
            batch_id = submit(server, [line(n) for n in range(LINES)])
            wait_until(lambda: counts_of(server, batch_id) > LINES // 20, 60)
            fill(home / "ballast", leave=64 * 1024)
            wait_until(lambda: "disk" in problem_of(server, batch_id), 60, "it says so")
            assert find(server, batch_id)["status"] == "in_progress"
            before = counts_of(server, batch_id)
            assert before < LINES
            if is_killed:
                server.kill()
                (home / "ballast").unlink()
                server.start()
            else:
                (home / "ballast").unlink()
            wait_for(server, batch_id, LINES + 1)
            check(server, batch_id, LINES)
        finally:
            server.end()
