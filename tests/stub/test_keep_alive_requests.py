"""What a request says about how long its model stays, on every endpoint."""

import contextlib
import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest

from tests.stub.conftest import MakeModel, MakeServer, starts_of
from tests.support.recorder import Recorder
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[[devices.simulated]]\nmemory = "8GiB"\n'


@pytest.fixture
def server(make_server: MakeServer) -> ServerProcess:
    return make_server(CONFIG)


def ask(
    server: ServerProcess, model: str, header: str | None = None, **fields: object
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
    headers = {} if header is None else {"X-Keep-Alive": header}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def idle_s(server: ServerProcess, model: str) -> float | None:
    """Seconds until the idle model is unloaded, as its owner is told."""

    def released() -> dict[str, Any] | None:
        now = server.model(model)
        return now if now["state"] == "ready" and not now["in_flight"] else None

    unload_at = wait_until(released)["idle_unload_at"]
    if unload_at is None:
        return None
    return (datetime.fromisoformat(unload_at) - datetime.now(UTC)).total_seconds()


def test_the_engine_sees_neither_field_and_all_else_as_it_was(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    raw = b'{"keep_alive": "5m", "model": "m", "top_k": 1e2, "messages": [], "ttl": 9}'
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=raw, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["raw"] == '{"model":"m","top_k":1e2,"messages":[]}'
    told = ask(server, "m", header="5m").json()
    assert "keep" not in told["head"].lower()


def test_a_large_body_is_stripped_too(server: ServerProcess, make_model: MakeModel) -> None:
    server.add_model("m", make_model("m"))
    text = "é" * 1_000_000
    sent = json.loads(ask(server, "m", ttl=60, user=text).json()["raw"])
    assert set(sent) == {"model", "messages", "user"}
    assert sent["user"] == text


def test_the_last_value_that_was_asked_for_counts(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    assert ask(server, "m", keep_alive="2h").status_code == 200
    assert idle_s(server, "m") == pytest.approx(7200, abs=20)
    assert ask(server, "m").status_code == 200
    assert idle_s(server, "m") == pytest.approx(7200, abs=20)
    assert ask(server, "m", keep_alive=None).status_code == 200
    assert idle_s(server, "m") == pytest.approx(7200, abs=20)
    assert ask(server, "m", header="-1").status_code == 200
    assert idle_s(server, "m") is None
    assert ask(server, "m", ttl=100).status_code == 200
    assert idle_s(server, "m") == pytest.approx(100, abs=20)


def test_a_fresh_load_goes_by_the_settings_again(
    server: ServerProcess, make_model: MakeModel
) -> None:
    path = make_model("m")
    server.add_model("m", path, idle_timeout_s=50)
    assert ask(server, "m", keep_alive=0).status_code == 200
    wait_until(lambda: server.model("m")["state"] == "stopped")
    assert ask(server, "m").status_code == 200
    assert idle_s(server, "m") == pytest.approx(50, abs=20)
    assert starts_of(path) == 2


def test_zero_unloads_as_soon_as_the_last_request_is_over(
    server: ServerProcess, make_model: MakeModel
) -> None:
    path = make_model("m", token_s=0.05)
    server.add_model("m", path)
    recorder = Recorder(server)
    answers: list[httpx.Response] = []
    long = threading.Thread(target=lambda: answers.append(ask(server, "m", max_tokens=30)))
    long.start()
    wait_until(lambda: server.model("m")["in_flight"] == 1)
    assert ask(server, "m", max_tokens=1, keep_alive=0).status_code == 200
    assert server.model("m")["in_flight"] == 1
    assert server.model("m")["state"] == "ready"
    long.join()
    wait_until(lambda: server.model("m")["state"] == "stopped")
    assert answers[0].status_code == 200
    reasons = [event["reason"] for event in recorder.of("transition")]
    assert "idle for 0 s" in reasons
    assert starts_of(path) == 1


def test_streams_completions_and_embeddings_take_it_as_well(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    server.add_model("e", make_model("e"), task="embed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "hello"}]
    stream = client.chat.completions.create(
        model="m", messages=messages, stream=True, extra_body={"keep_alive": "3h"}
    )
    assert len(list(stream)) > 0
    assert idle_s(server, "m") == pytest.approx(10800, abs=20)
    client.completions.create(model="m", prompt="hello", extra_headers={"X-Keep-Alive": "2h"})
    assert idle_s(server, "m") == pytest.approx(7200, abs=20)
    client.embeddings.create(model="e", input="hello", extra_body={"ttl": -1})
    assert idle_s(server, "e") is None


@pytest.mark.parametrize(
    ("named", "fields"),
    [("keep_alive", {"keep_alive": "soon"}), ("ttl", {"ttl": True}), ("X-Keep-Alive", {})],
)
def test_a_wrong_value_is_refused_before_anything_is_loaded(
    server: ServerProcess, make_model: MakeModel, named: str, fields: dict[str, object]
) -> None:
    path = make_model("m")
    server.add_model("m", path)
    response = ask(server, "m", header=None if fields else "a while", **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", named)
    assert error["message"].startswith(f"{named} is ")
    assert starts_of(path) == 0


def test_pinned_and_always_on_models_stay_whatever_is_asked_for(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("pin", make_model("pin"), pinned=True)
    server.add_model("base", make_model("base"), always_on=True)
    server.add_model("m", make_model("m"))
    for model in ("pin", "base", "m"):
        assert ask(server, model, keep_alive=0).status_code == 200
    wait_until(lambda: server.model("m")["state"] == "stopped")
    for model in ("pin", "base"):
        assert server.model(model)["state"] == "ready"
        assert server.model(model)["idle_unload_at"] is None


def test_the_owner_limits_what_requests_may_ask_for(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG + '[slots]\nmax_keep_alive = "1m"\n')
    server.add_model("m", make_model("m"))
    for asked in (-1, "2h"):
        assert ask(server, "m", keep_alive=asked).status_code == 200
        assert idle_s(server, "m") == pytest.approx(60, abs=20)


def test_a_waiter_whose_client_left_leaves_no_wish_behind(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m", load_s=1.0), idle_timeout_s=500)
    url = f"{server.url}/v1/chat/completions"
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(url, json={"model": "m", "messages": [], "keep_alive": "9h"}, timeout=0.3)
    assert ask(server, "m").status_code == 200
    assert idle_s(server, "m") == pytest.approx(500, abs=20)


def test_the_command_passes_it_on(server: ServerProcess, make_model: MakeModel) -> None:
    server.add_model("m", make_model("m"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "run", *arguments]
        return subprocess.run(command, env=server.env, capture_output=True, text=True, timeout=60)

    assert run("m", "hello", "--keep-alive", "90m").returncode == 0
    assert idle_s(server, "m") == pytest.approx(5400, abs=60)
    shown = subprocess.run(
        [sys.executable, "-m", "appliance", "ps"],
        env=server.env, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "in 1h" in shown
    assert run("m", "--keep-alive", "-1", "hello").returncode == 0
    assert idle_s(server, "m") is None
    wrong = run("m", "hello", "--keep-alive", "soon")
    assert wrong.returncode != 0
    assert "keep_alive" in wrong.stderr
