"""Kills, crashes and hangs: nothing is left behind, and service goes on."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from appliance.engine.proctree import process_info, session_processes
from tests.stub.conftest import MakeModel, MakeServer, starts_of
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = (
    '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nstop_timeout = "3s"\n'
    '[server]\ndrain_timeout = "3s"\n'
)


def ask(server: ServerProcess, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def tree_of(server: ServerProcess) -> set[int]:
    """All processes of all engines, guardians included."""
    return {info.pid for session in server.engine_pids() for info in session_processes(session)}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (info := process_info(pid)) is not None and not info.is_zombie}


def test_a_killed_server_leaves_no_engine_and_serves_again(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", token_s=0.05))
    server.load("a")
    for moment in ("idle", "streaming", "loading"):
        if moment == "streaming":
            body = {"model": "a", "messages": [], "stream": True, "max_tokens": 500}
            client = httpx.Client(timeout=30)
            stream = client.send(
                client.build_request("POST", f"{server.url}/v1/chat/completions", json=body),
                stream=True,
            )
            next(stream.iter_raw())
        if moment == "loading":
            server.add_model("slow", make_model("slow", load_s=30))
            server.admin("POST", "/models/slow/load")
            wait_until(lambda: server.model("slow")["state"] == "loading")
        pids = tree_of(server)
        assert len(pids) >= 3
        server.kill()
        wait_until(
            lambda pids=pids: not alive(pids), 8, f"engines gone after a kill while {moment}"
        )
        server.start()
        assert ask(server, "a").status_code == 200
        assert not list(server.paths.engine_records.glob("*.new"))


def test_what_a_killed_server_and_a_killed_guardian_left_is_swept_at_the_next_start(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", ignores_term=True))
    server.load("a")
    (guardian,) = server.engine_pids()
    pids = tree_of(server) - {guardian}
    assert server.process is not None
    # Stopped first, so that the server cannot clean up behind its guardian.
    server.process.send_signal(signal.SIGSTOP)
    os.kill(guardian, signal.SIGKILL)
    server.kill()
    left = alive(pids)
    assert left, "the worker outlives its guardian, or this test proves nothing"
    server.start()
    assert not alive(pids)
    assert ask(server, "a").status_code == 200


@pytest.mark.parametrize("victim_is", ["worker", "root", "guardian"])
def test_a_killed_process_of_an_engine_is_noticed_within_a_second_and_replaced(
    make_server: MakeServer, make_model: MakeModel, victim_is: str
) -> None:
    server = make_server(CONFIG)
    path = make_model("a", token_s=0.05)
    server.add_model("a", path)
    server.load("a")
    (guardian,) = server.engine_pids()
    members = [info for info in session_processes(guardian) if info.pid != guardian]
    victim = {
        "worker": next(info.pid for info in members if info.name.startswith("VLLM::")),
        "root": next(info.pid for info in members if not info.name.startswith("VLLM::")),
        "guardian": guardian,
    }[victim_is]
    body = {"model": "a", "messages": [], "stream": True, "max_tokens": 500}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: server.model("a")["state"] != "ready", 1.0)
        rest = [line for line in lines if line]
        assert time.monotonic() - killed < 4
    assert "data: [DONE]" not in rest
    assert '"code":"engine_died"' in rest[-1]
    wait_until(lambda: not alive({info.pid for info in members}), 5)
    failure = server.state()["engines"][-1]["failure"]
    assert failure["cause"] in {"killed", "crashed"}
    assert ask(server, "a").status_code == 200
    assert starts_of(path) == 2


def test_an_engine_that_ignores_sigterm_is_gone_after_the_grace_period(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", ignores_term=True))
    server.load("a")
    pids = tree_of(server)
    server.admin("POST", "/models/a/unload")
    wait_until(lambda: server.model("a")["state"] == "stopped", 8)
    assert not alive(pids)


def test_a_load_that_makes_no_progress_is_given_up(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG.replace("[engines]", '[engines]\nstall_timeout = "1s"'))
    server.add_model("a", make_model("a", hangs=True))
    response = ask(server, "a")
    assert response.status_code == 503
    assert server.model("a")["failure"]["cause"] == "stalled"


def test_an_engine_that_serves_another_name_is_never_ready(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG.replace("[engines]", '[engines]\nstall_timeout = "1s"'))
    server.add_model("a", make_model("a", serves="impostor"))
    assert ask(server, "a").status_code == 503


def test_an_always_on_model_comes_back_by_itself(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    path = make_model("a")
    server.add_model("a", path, always_on=True)
    wait_until(lambda: server.model("a")["state"] == "ready")
    os.kill(server.engine_pids()[0], signal.SIGKILL)
    wait_until(lambda: starts_of(path) == 2 and server.model("a")["state"] == "ready", 15)


def test_a_model_that_keeps_failing_is_tried_again_later_and_then_left_to_a_person(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(
        CONFIG.replace("[engines]", '[engines]\nretry_first = "0.2s"\nmax_attempts = 3')
    )
    path = make_model("a", fails="quietly")
    server.add_model("a", path, always_on=True)
    wait_until(lambda: starts_of(path) == 3, 15)
    failure = wait_until(lambda: server.model("a")["failure"])
    wait_until(lambda: server.model("a")["failure"]["attempts"] == 3)
    failure = server.model("a")["failure"]
    assert failure["retry_at"] is None
    assert "status 7" in failure["message"]
    assert ask(server, "a").status_code == 503
    assert starts_of(path) == 3
    make_model("a")
    server.load("a")


def test_sigterm_lets_requests_end_and_leaves_nothing(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", token_s=0.1))
    server.load("a")
    pids = tree_of(server)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server, "a", max_tokens=12)
        wait_until(lambda: server.model("a")["in_flight"] == 1)
        assert server.stop() == 0
        assert answer.result().status_code == 200
    assert not alive(pids)
    assert not server.paths.admin_socket.exists()
    assert not list(server.paths.engine_records.iterdir())


def test_sigterm_does_not_wait_longer_than_its_limit(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG.replace('drain_timeout = "3s"', 'drain_timeout = "0.5s"'))
    server.add_model("a", make_model("a", token_s=0.1))
    server.load("a")
    body = {"model": "a", "messages": [], "stream": True, "max_tokens": 1000}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8


def test_a_second_server_on_the_same_state_is_refused(make_server: MakeServer) -> None:
    server = make_server(CONFIG)
    second = subprocess.run(
        [sys.executable, "-m", "appliance", "serve"],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "Another server already runs" in second.stderr


def test_an_address_that_others_can_reach_needs_keys(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a"))
    secret = server.admin("POST", "/keys", {"name": "k"}).json()["secret"]
    admin = server.admin("POST", "/keys", {"name": "k", "scope": "admin"}).json()["secret"]
    assert httpx.get(f"{server.url}/admin/v1/state").status_code == 401
    for key, status in ((secret, 403), (admin, 200), ("sk-wrong", 401)):
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.get(f"{server.url}/admin/v1/state", headers=headers)
        assert answer.status_code == status
    server.stop()
    server.start("--host", "0.0.0.0")
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    database = server.paths.database.read_bytes()
    assert secret.encode() not in database


def test_without_keys_a_reachable_address_is_refused(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = ServerProcess(tmp_path / "lonely", CONFIG)
    result = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", "--host", "0.0.0.0"],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert "appliance keys create" in result.stderr
