"""Engines forked from the warm launcher: the same answers, and nothing depends on it."""

import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from appliance.engine.proctree import all_processes, process_info, session_processes
from tests.engine.conftest import MakeServer
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CONFIG = '[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n'


def answer(server: ServerProcess, model: str) -> str:
    """Tokens and log-probabilities at temperature 0."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 3,
    }
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LOAD_S)
    assert response.status_code == 200, response.text
    return json.dumps(response.json()["choices"][0]["logprobs"]["content"])


def launchers(server: ServerProcess) -> list[int]:
    assert server.process is not None
    return [
        info.pid
        for info in all_processes()
        if info.ppid == server.process.pid and info.name.startswith("appliance-launc")
    ]


def is_forked(server: ServerProcess, model: str) -> bool:
    engine_id = server.model(model)["engine_id"]
    engines = {engine["id"]: engine for engine in server.state()["engines"]}
    return bool(engines[engine_id]["was_forked"])


def test_forked_and_plain_engines_answer_the_same_and_the_launcher_may_die(
    make_server: MakeServer, prepared: Path
) -> None:
    server = make_server(CONFIG)
    tiny = prepared / "models/tiny"
    server.add_model("forked", tiny)
    # Variables of a model's own lead to a plain start.
    server.add_model("plain", tiny, env={"SOME_VARIABLE": "1"})
    forked, plain = answer(server, "forked"), answer(server, "plain")
    assert is_forked(server, "forked")
    assert not is_forked(server, "plain")
    assert forked == plain

    (launcher,) = launchers(server)
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: launcher not in launchers(server))
    assert answer(server, "forked") == forked
    server.admin("POST", "/models/forked/unload")
    wait_until(lambda: server.model("forked")["state"] == "stopped")

    def launcher_is_back() -> bool:
        (now,) = server.state()["server"]["launchers"]
        return bool(now["state"] == "warm" and now["pid"] != launcher)

    wait_until(launcher_is_back, LOAD_S)
    assert answer(server, "forked") == forked
    assert is_forked(server, "forked")


def test_what_a_launcher_holds_is_known_and_counted(
    make_server: MakeServer, prepared: Path
) -> None:
    server = make_server(CONFIG)

    def held() -> int:
        # A launcher that fails once is gone until it is started again.
        found = server.state()["server"]["launchers"]
        return sum(int(launcher["memory_bytes"]) for launcher in found)

    wait_until(lambda: held() > 256 * 1024**2, LOAD_S, "memory of the launcher")

    def counted() -> dict[str, int]:
        (device,) = server.state()["devices"]
        return dict(device) if device["launcher_bytes"] > 256 * 1024**2 else {}

    device = wait_until(counted, 30, "launcher on the device")
    assert device["used_bytes"] >= device["launcher_bytes"]


def test_a_server_that_is_killed_takes_its_launcher_and_forked_engines_along(
    make_server: MakeServer, prepared: Path
) -> None:
    server = make_server(CONFIG)
    server.add_model("tiny", prepared / "models/tiny")
    answer(server, "tiny")
    assert is_forked(server, "tiny")
    (launcher,) = launchers(server)
    pids = {launcher} | {
        info.pid for session in server.engine_pids() for info in session_processes(session)
    }
    server.kill()

    def left() -> list[int]:
        infos = [process_info(pid) for pid in pids]
        return [info.pid for info in infos if info is not None and not info.is_zombie]

    wait_until(lambda: not left(), 30)
