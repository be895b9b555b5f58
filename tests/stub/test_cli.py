"""The command as people type it, against a running server."""

import json
import os
import signal
import threading
import time

import httpx
import openai
import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer
from tests.support.command import appliance
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[[devices.simulated]]\nmemory = "1256MiB"\n'


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    server.add_model("m", make_model("m", token_s=0.01), memory_bytes=100 * MIB)
    return server


def test_options_of_the_terminal_ui_reach_it(server: ServerProcess) -> None:
    once = appliance(server, "tui", "--once")
    assert once.returncode == 0, once.stderr
    assert "m" in once.stdout
    snapshot = json.loads(appliance(server, "tui", "--once", "--json").stdout)
    assert snapshot["models"][0]["id"] == "m"
    assert appliance(server, "tui", "--help").returncode == 0


def test_a_prompt_may_come_before_or_after_options(server: ServerProcess) -> None:
    for words in (
        ("run", "m", "--max-tokens", "3", "hello", "you"),
        ("run", "m", "hello", "you", "--max-tokens", "3"),
        ("run", "--max-tokens", "3", "m", "hello", "you"),
    ):
        result = appliance(server, *words)
        assert (result.returncode, result.stdout) == (0, "t0 t1 t2 \n"), result.stderr
    assert appliance(server, "ls", "nonsense").returncode == 2


def test_settings_are_added_changed_and_shown(server: ServerProcess, make_model: MakeModel) -> None:
    added = appliance(
        server, "add", str(make_model("n")), "--name", "org/n", "--context", "64",
        "--idle", "5m", "--arg=--seed=1", "--env", "MODE=x", "--memory", "64MiB",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    settings = server.model("org/n")["settings"]
    assert (settings["context_length"], settings["idle_timeout_s"]) == (64, 300)
    assert (settings["extra_args"], settings["env"]) == (["--seed=1"], {"MODE": "x"})
    changed = appliance(server, "set", "org/n", "--pin", "--context", "32")
    assert changed.returncode == 0, changed.stderr
    assert server.model("org/n")["settings"]["pinned"] is True
    shown = appliance(server, "show", "org/n").stdout
    assert "32 tokens" in shown
    assert "None" not in shown
    assert appliance(server, "set", "org/n").returncode == 2


def test_what_cannot_be_loaded_is_said_when_it_is_added(
    server: ServerProcess, make_model: MakeModel
) -> None:
    wide = appliance(server, "add", str(make_model("wide")), "--tp", "2", "--environment", "foo")
    assert wide.returncode == 0
    assert "split over 2 devices" in wide.stderr
    assert "no engine environment foo" in wide.stderr


def test_errors_are_json_where_json_was_asked_for(server: ServerProcess) -> None:
    result = appliance(server, "show", "nope", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["hint"]
    assert appliance(server, "logs", "m", "-n", "-3").returncode == 2


def test_another_server_is_named_after_the_verb_too(server: ServerProcess) -> None:
    key = server.admin("POST", "/keys", {"name": "k", "scope": "admin"}).json()["secret"]
    server.env["APPLIANCE_API_KEY"] = key
    result = appliance(server, "ls", "--json", "--url", f"{server.url}/v1")
    assert json.loads(result.stdout)[0]["id"] == "m", result.stderr


def test_load_stop_ps_logs_and_rm(server: ServerProcess) -> None:
    assert "fits on device 0" in appliance(server, "load", "--dry-run", "m").stdout
    assert appliance(server, "load", "m").returncode == 0
    assert "ready" in appliance(server, "ps").stdout
    assert "Loading weights took" in appliance(server, "logs", "m").stdout
    assert "is unloaded" in appliance(server, "stop", "m").stdout
    assert appliance(server, "rm", "m").returncode == 0
    assert json.loads(appliance(server, "ls", "--json").stdout) == []


def test_a_stopped_server_ends_streams_with_an_error_and_a_second_signal_hurries_it(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG + '[server]\ndrain_timeout = "60s"\n')
    server.add_model("m", make_model("m", token_s=0.05), memory_bytes=100 * MIB)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(model="m", messages=[], stream=True, max_tokens=100_000)
    next(iter(stream))
    errors: list[openai.APIError] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except openai.APIError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert server.process is not None
    started = time.monotonic()
    os.kill(server.process.pid, signal.SIGINT)
    wait_until(lambda: "another signal stops at once" in server.log.read_text())
    os.kill(server.process.pid, signal.SIGINT)
    assert server.process.wait(20) == 0
    assert time.monotonic() - started < 15
    reader.join(10)
    assert "stopped before the answer was complete" in str(errors[0])
    assert "Traceback" not in server.log.read_text()


def test_the_address_itself_says_what_it_is(server: ServerProcess) -> None:
    assert "/v1" in httpx.get(server.url).text
    assert httpx.get(f"{server.url}/health").status_code == 200
