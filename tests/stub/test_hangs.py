"""Engines that live and do not work: found under load; slow ones are left alone."""

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from appliance.engine.proctree import session_processes
from tests.stub.conftest import MakeModel, MakeServer, starts_of
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = (
    '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nstop_timeout = "3s"\n'
    'frozen_timeout = "1.5s"\nhang_timeout = "4s"\nstall_timeout = "1.5s"\nretry_first = "0s"\n'
    '[server]\ndrain_timeout = "1s"\n'
)


def ask(server: ServerProcess, text: str = "", **fields: object) -> httpx.Response:
    body = {"model": "a", "messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


@contextmanager
def stream(server: ServerProcess, **fields: object) -> Iterator[Iterator[str]]:
    body = {"model": "a", "stream": True, **fields}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        yield response.iter_lines()


def engine_processes(server: ServerProcess) -> list[int]:
    """Without the guardian."""
    (session,) = server.engine_pids()
    return [info.pid for info in session_processes(session) if info.pid != session]


def last_failure(server: ServerProcess) -> dict[str, object]:
    failures = [engine["failure"] for engine in server.state()["engines"] if engine["failure"]]
    return dict(failures[-1]) if failures else {}


def test_a_stopped_engine_is_replaced_when_somebody_waits_for_it(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    model = make_model("a", token_s=0.05)
    server.add_model("a", model)
    server.load("a")
    before = server.engine_pids()
    for pid in engine_processes(server):
        os.kill(pid, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(server), range(3)))
    assert {answer.status_code for answer in answers} == {503}
    error = answers[0].json()["error"]
    assert "It hangs" in error["message"]
    assert "stopped" in error["message"]
    assert "Send the request again" in error["message"]
    assert ask(server).status_code == 200
    assert server.engine_pids() != before
    assert starts_of(model) == 2


def test_an_engine_that_hangs_is_found_while_requests_keep_coming(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    # vLLM's API server sends the head of a stream without its core.
    server = make_server(CONFIG)
    server.add_model("a", make_model("a"))
    server.load("a")
    messages = [{"role": "user", "content": "hang before"}]

    def ask_one() -> str:
        with stream(server, messages=messages) as lines:
            return "".join(lines)

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = []
        started = time.monotonic()
        while not any(answer.done() for answer in answers):
            answers.append(pool.submit(ask_one))
            assert time.monotonic() - started < 10
            concurrent.futures.wait(answers, timeout=0.3, return_when="FIRST_COMPLETED")
    assert "It hangs" in answers[0].result()


@pytest.mark.parametrize(
    ("text", "least_s"),
    [("hang amid", 1.0), ("hang amid spin", 3.5), ("hang before fetch", 3.5)],
)
def test_an_engine_that_hangs_in_mid_answer_is_found(
    make_server: MakeServer, make_model: MakeModel, text: str, least_s: float
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a"))
    server.load("a")
    messages = [{"role": "user", "content": text}]
    started = time.monotonic()
    with stream(server, messages=messages, max_tokens=10) as lines:
        rest = [line for line in lines if line.startswith("data")]
    assert time.monotonic() - started >= least_s
    assert "It hangs" in rest[-1]
    assert "data: [DONE]" not in rest
    wait_until(lambda: last_failure(server).get("cause") == "hung")
    assert ask(server).status_code == 200


def test_a_client_that_does_not_read_is_no_fault_of_the_engine(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    model = make_model("a", token_s=0)
    server.add_model("a", model)
    server.load("a")
    started = time.monotonic()
    with stream(server, messages=[], max_tokens=60_000) as lines:
        next(lines)
        # Far beyond the limit for an engine that owes an answer.
        wait_until(lambda: time.monotonic() - started > 6, 10)
        rest = [line for line in lines if line.startswith("data")]
    assert rest[-1] == "data: [DONE]"
    assert starts_of(model) == 1


def test_an_idle_engine_is_not_suspected(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(CONFIG)
    model = make_model("a")
    server.add_model("a", model)
    assert ask(server).status_code == 200
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 4, 10)
    assert ask(server).status_code == 200
    assert starts_of(model) == 1


@pytest.mark.parametrize("step", ["shard", "read"])
def test_a_slow_load_that_moves_is_not_given_up(
    make_server: MakeServer, make_model: MakeModel, step: str
) -> None:
    server = make_server(CONFIG)
    model = make_model("a", steps=8, step_s=0.9, step=step)
    server.add_model("a", model)
    started = time.monotonic()
    server.load("a")
    assert time.monotonic() - started > 4 * 1.5
    assert starts_of(model) == 1


def test_a_load_that_only_repeats_itself_is_given_up(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", steps=40, step_s=0.2, step="words"))
    server.admin("POST", "/models/a/load")
    wait_until(lambda: server.model("a")["failure"], 20)
    assert server.model("a")["failure"]["cause"] == "stalled"
