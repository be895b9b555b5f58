"""Idle and evicted engines sleep where that works; on any failure a fresh engine answers."""

import concurrent.futures
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.engine.proctree import session_processes
from tests.stub.conftest import MIB, MakeModel, MakeServer, starts_of
from tests.support.recorder import Recorder
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

WEIGHTS, KV_CACHE, NEED = 24 * MIB, 40 * MIB, 300 * MIB
LIMITS = '[engines]\nsleep_timeout = "2s"\nstop_timeout = "3s"\nretry_first = "0s"\n'
IDLE = f'[[devices.simulated]]\nmemory = "8GiB"\n{LIMITS}[slots]\nidle_timeout = "1s"\n'
# Two of them do not fit at once, one and what stays of another do.
TIGHT = f'[[devices.simulated]]\nmemory = "800MiB"\n{LIMITS}'


def add(server: ServerProcess, make_model: MakeModel, name: str, **behaviour: Any) -> Path:
    settings = {each: behaviour.pop(each) for each in ("sleep", "tp_size") if each in behaviour}
    behaviour = {"weights_bytes": WEIGHTS, "kv_bytes": KV_CACHE, "load_s": 0.0, **behaviour}
    path = make_model(name, **behaviour)
    with (path / "model.safetensors").open("ab") as file:
        file.truncate(WEIGHTS)
    server.add_model(
        name,
        path,
        environment="stub-sleep",
        kv_cache_bytes=KV_CACHE,
        memory_bytes=NEED,
        **settings,
    )
    return path


def ask(server: ServerProcess, model: str) -> str:
    body = {"model": model, "messages": [], "max_tokens": 3}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def state_is(server: ServerProcess, model: str, state: str) -> None:
    wait_until(lambda: server.model(model)["state"] == state, 20, f"{model} {state}")


def free_bytes(server: ServerProcess) -> int:
    return int(server.state()["devices"][0]["free_bytes"])


@pytest.mark.parametrize("level", [1, 2])
def test_an_idle_model_sleeps_and_a_request_wakes_it(
    make_server: MakeServer, make_model: MakeModel, level: int
) -> None:
    server = make_server(IDLE)
    path = add(server, make_model, "a", sleep=level)
    recorder = Recorder(server)
    for _ in range(2):
        assert ask(server, "a") == "xxx"
        state_is(server, "a", "asleep")
        assert server.model("a")["sleep_level"] == level
    # Only what stays is taken on the device.
    assert 0 < server.model("a")["memory_bytes"] < KV_CACHE
    assert free_bytes(server) > 8 * 1024 * MIB - NEED - 256 * MIB
    assert ask(server, "a") == "xxx"
    assert starts_of(path) == 1
    (verdict,) = server.model("a")["sleep"]
    assert verdict["works"]
    assert verdict["level"] == level
    assert verdict["freed_bytes"] >= 0.9 * (WEIGHTS + KV_CACHE)
    assert verdict["wake_s"] > 0
    states = [event["after"] for event in recorder.of("transition")]
    ready = states.index("ready")
    assert states[ready : ready + 5] == ["ready", "draining", "asleep", "waking", "ready"]


def test_a_keep_alive_of_an_earlier_request_ends_with_sleep(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(IDLE)
    add(server, make_model, "a", sleep=1, idle_timeout_s=500)
    body = {"model": "a", "messages": [], "keep_alive": 0}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).is_success
    state_is(server, "a", "asleep")
    assert ask(server, "a") == "xxx"
    wait_until(lambda: server.model("a")["idle_unload_at"] is not None, 5, "idle and awake")
    assert server.model("a")["state"] == "ready"


def test_two_models_that_do_not_fit_together_sleep_for_each_other(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(TIGHT)
    paths = [add(server, make_model, name) for name in ("a", "b")]
    recorder = Recorder(server)
    for _ in range(3):
        assert ask(server, "a") == "xxx"
        assert ask(server, "b") == "xxx"
    assert [starts_of(path) for path in paths] == [1, 1]
    assert server.model("a")["state"] == "asleep"
    swaps = wait_until(lambda: len(recorder.of("swap")) >= 5 and recorder.of("swap"))
    assert [swap["model"] for swap in swaps] == ["b", "a", "b", "a", "b"]


def test_an_engine_over_two_devices_sleeps_on_both(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    device = '[[devices.simulated]]\nmemory = "1GiB"\n'
    server = make_server(f"{device * 2}{LIMITS}")
    path = add(server, make_model, "a", tp_size=2, kv_bytes=2 * KV_CACHE)
    assert ask(server, "a") == "xxx"
    assert server.admin("POST", "/models/a/sleep").status_code == 202
    state_is(server, "a", "asleep")
    for each in server.state()["devices"]:
        assert 0 < each["reserved_bytes"] < KV_CACHE
    assert ask(server, "a") == "xxx"
    assert starts_of(path) == 1
    assert server.model("a")["sleep"][0]["freed_bytes"] >= 0.9 * (WEIGHTS + 2 * KV_CACHE)


def test_what_stays_of_sleeping_models_makes_room_first(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(TIGHT)
    small = add(server, make_model, "small")
    assert ask(server, "small") == "xxx"
    large = make_model("large", load_s=0.0)
    # As much as the device has.
    server.add_model("large", large, memory_bytes=(800 - 256) * MIB)
    assert ask(server, "large") == "xxx"
    assert server.model("small")["state"] == "stopped"
    assert ask(server, "small") == "xxx"
    assert starts_of(small) == 2


def test_a_sleeper_whose_device_is_busy_is_replaced_on_another_one(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    device = '[[devices.simulated]]\nmemory = "800MiB"\n'
    server = make_server(device * 2 + LIMITS)
    path = add(server, make_model, "a")
    assert ask(server, "a") == "xxx"
    before = server.model("a")["placement"]["shares"][0]["device_id"]
    assert server.admin("POST", "/models/a/sleep").status_code == 202
    state_is(server, "a", "asleep")
    busy = make_model("busy", token_s=0.05)
    server.add_model("busy", busy, memory_bytes=500 * MIB, devices=[before])
    body = {"model": "busy", "messages": [], "stream": True, "max_tokens": 400}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        while not next(lines).startswith("data:"):
            pass
        assert ask(server, "a") == "xxx"
    assert starts_of(path) == 2
    assert server.model("a")["placement"]["shares"][0]["device_id"] != before


@pytest.mark.parametrize(
    ("fault", "level"),
    [
        ("keeps", 1),
        ("keeps", 2),
        ("hangs at /sleep", 1),
        ("500 at /sleep", 2),
        ("dies at /sleep", 1),
    ],
)
def test_what_cannot_be_put_to_sleep_is_unloaded_and_not_tried_again(
    make_server: MakeServer, make_model: MakeModel, fault: str, level: int
) -> None:
    server = make_server(IDLE)
    path = add(server, make_model, "a", sleep=level, sleep_fault=fault)
    recorder = Recorder(server)
    for number in (1, 2):
        assert ask(server, "a") == "xxx"
        wait_until(lambda: server.model("a")["state"] in {"stopped", "failed"}, 20)
        assert starts_of(path) == number
    (verdict,) = server.model("a")["sleep"]
    assert not verdict["works"]
    assert verdict["reason"]
    reasons = [event["reason"] for event in recorder.of("transition")]
    assert any("idle for 1 s" in reason for reason in reasons)
    (alert,) = recorder.of("alert")
    assert verdict["reason"] in alert["alert"]["message"]


@pytest.mark.parametrize(
    ("fault", "level"),
    [
        ("garbage", 1),
        ("garbage", 2),
        ("hangs at /wake_up", 1),
        ("hangs at /collective_rpc", 2),
        ("500 at /wake_up", 2),
        ("dies at /wake_up", 1),
    ],
)
def test_clients_of_a_model_that_does_not_wake_are_answered_by_a_fresh_engine(
    make_server: MakeServer, make_model: MakeModel, fault: str, level: int
) -> None:
    server = make_server(IDLE)
    path = add(server, make_model, "a", sleep=level, sleep_fault=fault)
    assert ask(server, "a") == "xxx"
    state_is(server, "a", "asleep")
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: ask(server, "a"), range(5)))
    assert answers == ["xxx"] * 5
    assert starts_of(path) == 2
    (verdict,) = server.model("a")["sleep"]
    assert not verdict["works"]
    # It is unloaded from now on.
    state_is(server, "a", "stopped")


def test_a_sleeper_that_dies_is_noticed_and_replaced(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(IDLE)
    path = add(server, make_model, "a")
    assert ask(server, "a") == "xxx"
    state_is(server, "a", "asleep")
    (session,) = server.engine_pids()
    for info in session_processes(session):
        if info.pid != session:
            os.kill(info.pid, signal.SIGKILL)
    state_is(server, "a", "failed")
    assert ask(server, "a") == "xxx"
    assert starts_of(path) == 2


def test_verdicts_outlive_the_server(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(IDLE)
    add(server, make_model, "a", sleep=2, sleep_fault="keeps")
    assert ask(server, "a") == "xxx"
    wait_until(lambda: server.model("a")["sleep"], 20)
    server.stop()
    server.start()
    assert not server.model("a")["sleep"][0]["works"]
    recorder = Recorder(server)
    assert ask(server, "a") == "xxx"
    state_is(server, "a", "stopped")
    assert not recorder.of("alert")


def test_ram_for_sleepers_is_limited(make_server: MakeServer, make_model: MakeModel) -> None:
    """The one that was used longest ago gives its RAM back; level 2 needs none."""
    server = make_server(f'{IDLE}sleep_memory = "32MiB"\n')
    for name in ("a", "b"):
        add(server, make_model, name, sleep=1)
        assert ask(server, name) == "xxx"
        state_is(server, name, "asleep")
    state_is(server, "a", "stopped")
    add(server, make_model, "c", sleep=2)
    assert ask(server, "c") == "xxx"
    state_is(server, "c", "asleep")
    assert server.model("b")["state"] == "asleep"


def test_a_sleeper_that_nobody_asks_for_is_unloaded(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    """Before that it is left alone, though it does nothing for longer than a ready one may."""
    limits = LIMITS + 'frozen_timeout = "0.5s"\nhang_timeout = "1s"\n'
    server = make_server(f'{IDLE.replace(LIMITS, limits)}asleep_timeout = "3s"\n')
    add(server, make_model, "a")
    recorder = Recorder(server)
    assert ask(server, "a") == "xxx"
    state_is(server, "a", "asleep")
    state_is(server, "a", "stopped")
    assert "asleep and idle for 3 s" in [event["reason"] for event in recorder.of("transition")]


def test_people_put_models_to_sleep_and_wake_them(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(f'[[devices.simulated]]\nmemory = "8GiB"\n{LIMITS}')
    add(server, make_model, "a", sleep="auto")
    assert server.admin("POST", "/models/a/sleep").status_code == 409
    assert server.admin("POST", "/models/a/wake").status_code == 409
    server.load("a")
    assert server.admin("POST", "/models/a/sleep?level=3").status_code == 400
    assert server.admin("POST", "/models/a/sleep?level=2").status_code == 202
    state_is(server, "a", "asleep")
    assert server.model("a")["sleep_level"] == 2
    assert server.admin("POST", "/models/a/plan").json()["message"] == "a is asleep."
    assert server.admin("POST", "/models/a/wake").status_code == 202
    state_is(server, "a", "ready")
    server.admin("POST", "/models/a/sleep")
    state_is(server, "a", "asleep")
    assert server.model("a")["sleep_level"] == 1
    server.admin("POST", "/models/a/unload")
    state_is(server, "a", "stopped")


def test_an_engine_without_sleep_mode_is_unloaded_as_ever(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(IDLE)
    server.add_model("a", make_model("a"))
    assert ask(server, "a") == "xxx"
    refused = server.admin("POST", "/models/a/sleep")
    assert refused.status_code == 409
    assert "sleep mode" in refused.text
    state_is(server, "a", "stopped")


@pytest.mark.parametrize(
    "path",
    ["/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/v1/sleep"],
)
def test_clients_never_reach_the_endpoints_for_development(
    make_server: MakeServer, make_model: MakeModel, path: str
) -> None:
    server = make_server(f'[[devices.simulated]]\nmemory = "8GiB"\n{LIMITS}')
    add(server, make_model, "a")
    server.load("a")
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{server.url}{path}", json={"model": "a"}, timeout=10)
        assert answer.status_code in {404, 405}
    assert server.model("a")["state"] == "ready"
