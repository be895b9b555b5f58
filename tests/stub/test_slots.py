"""Who is loaded, who has to go, who waits."""

import concurrent.futures
import threading
import time

import httpx
import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer, starts_of
from tests.support.recorder import Recorder
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

ONE_DEVICE = '[[devices.simulated]]\nmemory = "1256MiB"\n'
TWO_DEVICES = ONE_DEVICE * 2


def ask(server: ServerProcess, model: str, **fields: object) -> int:
    body = {"model": model, "messages": [], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code


def test_two_models_that_do_not_fit_together_take_turns_and_the_pinned_one_stays(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("base", make_model("base"), memory_bytes=200 * MIB, always_on=True)
    server.add_model("a", make_model("a"), memory_bytes=600 * MIB)
    server.add_model("b", make_model("b"), memory_bytes=600 * MIB)
    wait_until(lambda: server.model("base")["state"] == "ready")
    base_pid = server.engine_pids()
    recorder = Recorder(server)
    for model in ("a", "b", "a", "b"):
        assert ask(server, model) == 200
    swaps = wait_until(lambda: len(recorder.of("swap")) >= 3 and recorder.of("swap"))
    assert [(swap["evicted"], swap["model"]) for swap in swaps] == [
        (["a"], "b"),
        (["b"], "a"),
        (["a"], "b"),
    ]
    assert all(swap["duration_s"] > 0 for swap in swaps)
    reasons = [event["reason"] for event in recorder.of("transition")]
    assert "evicted for b" in reasons
    assert set(base_pid) < set(server.engine_pids())


def test_idle_models_are_unloaded_and_the_always_on_one_is_left(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server('[[devices.simulated]]\nmemory = "8GiB"\n[slots]\nidle_timeout = "1s"\n')
    server.add_model("base", make_model("base"), always_on=True)
    server.add_model("a", make_model("a"))
    server.add_model("keep", make_model("keep"), idle_timeout_s=-1)
    server.add_model("pin", make_model("pin"), pinned=True)
    for model in ("a", "keep", "pin"):
        assert ask(server, model) == 200
    wait_until(lambda: server.model("a")["state"] == "stopped")
    wait_until(lambda: server.model("base")["state"] == "ready")
    assert server.model("keep")["state"] == "ready"
    assert server.model("pin")["state"] == "ready"


def test_what_does_not_fit_is_refused_with_numbers_and_evicts_nobody(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a"), memory_bytes=600 * MIB)
    server.add_model("big", make_model("big"), memory_bytes=2000 * MIB)
    assert ask(server, "a") == 200
    response = httpx.post(
        f"{server.url}/v1/chat/completions", json={"model": "big", "messages": []}, timeout=10
    )
    assert response.status_code == 503
    message = response.json()["error"]["message"]
    assert "needs 2.0 GiB" in message
    assert "400 MiB free of 1000 MiB" in message
    assert server.model("a")["state"] == "ready"
    plan = server.admin("POST", "/models/big/plan").json()
    assert plan["verdict"] == "refuse"


def test_a_plan_says_what_a_load_would_do(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a"), memory_bytes=600 * MIB)
    server.add_model("b", make_model("b"), memory_bytes=600 * MIB)
    assert server.admin("POST", "/models/a/plan").json()["verdict"] == "place"
    server.load("a")
    assert server.admin("POST", "/models/a/plan").json()["verdict"] == "loaded"
    plan = server.admin("POST", "/models/b/plan").json()
    assert (plan["verdict"], plan["evicts"]) == ("evict", ["a"])
    assert server.model("a")["state"] == "ready"


def test_models_spread_over_devices_and_a_split_model_takes_several(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(TWO_DEVICES)
    server.add_model("a", make_model("a"), memory_bytes=300 * MIB)
    server.add_model("b", make_model("b"), memory_bytes=300 * MIB)
    server.add_model("wide", make_model("wide"), memory_bytes=300 * MIB, tp_size=2)
    server.add_model("second", make_model("second"), memory_bytes=300 * MIB, devices=["1"])
    for model in ("a", "b", "wide", "second"):
        assert ask(server, model) == 200

    def places(model: str) -> list[int]:
        shares = server.model(model)["placement"]["shares"]
        return [share["device_index"] for share in shares]

    assert places("a") != places("b")
    assert places("wide") == [0, 1]
    assert places("second") == [1]
    devices = server.state()["devices"]
    assert all(device["reserved_bytes"] >= 600 * MIB for device in devices)


def test_a_busy_model_is_not_evicted_but_nobody_waits_for_ever(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE + '[slots]\nmax_wait = "1s"\nmin_loaded = "0s"\n')
    busy = make_model("busy", token_s=0.05)
    server.add_model("busy", busy, memory_bytes=600 * MIB)
    server.add_model("other", make_model("other"), memory_bytes=600 * MIB)
    server.load("busy")
    stop = threading.Event()
    failures: list[int] = []

    def keep_busy() -> None:
        while not stop.is_set():
            status = ask(server, "busy", max_tokens=8)
            if status != 200:
                failures.append(status)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            pool.submit(keep_busy)
        wait_until(lambda: server.model("busy")["in_flight"] > 0)
        started = time.monotonic()
        try:
            assert ask(server, "other") == 200
            assert time.monotonic() - started < 8
            # And the traffic that was held back goes on afterwards.
            wait_until(lambda: starts_of(busy) == 2 and server.model("busy")["in_flight"] > 0)
        finally:
            stop.set()
    assert failures == []


def test_an_unload_waits_for_the_requests_in_flight(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a", token_s=0.1), memory_bytes=600 * MIB)
    server.load("a")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server, "a", max_tokens=15)
        wait_until(lambda: server.model("a")["in_flight"] == 1)
        assert server.admin("POST", "/models/a/unload").status_code == 202
        assert server.model("a")["state"] == "draining"
        assert answer.result() == 200
    wait_until(lambda: server.model("a")["state"] == "stopped")


def test_a_load_can_be_stopped(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a", load_s=60), memory_bytes=600 * MIB)
    server.admin("POST", "/models/a/load")
    wait_until(lambda: server.model("a")["state"] == "loading")
    server.admin("POST", "/models/a/unload")
    wait_until(lambda: server.model("a")["state"] == "stopped", 10)
    assert server.engine_pids() == []


def test_an_always_on_model_stays_away_after_its_owner_unloaded_it(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    path = make_model("base")
    server.add_model("base", path, memory_bytes=100 * MIB, always_on=True)
    server.add_model("a", make_model("a"), memory_bytes=100 * MIB)
    wait_until(lambda: server.model("base")["state"] == "ready")
    server.admin("POST", "/models/base/unload")
    wait_until(lambda: server.model("base")["state"] == "stopped")
    server.load("a")
    assert starts_of(path) == 1
    server.load("base")
    assert starts_of(path) == 2


def test_a_deleted_model_is_unloaded_and_gone(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("org/a", make_model("a"), memory_bytes=100 * MIB)
    server.load("org/a")
    assert server.admin("DELETE", "/models/org/a").status_code == 204
    assert server.admin("GET", "/models/org/a").status_code == 404
    assert server.engine_pids() == []
    assert ask(server, "org/a") == 404


def test_models_and_settings_survive_a_restart(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a"), memory_bytes=100 * MIB, context_length=64)
    changed = server.admin("PATCH", "/models/a", {"pinned": True, "idle_timeout_s": 5})
    assert changed.status_code == 200
    assert server.stop() == 0
    server.start()
    settings = server.model("a")["settings"]
    assert (settings["context_length"], settings["pinned"]) == (64, True)
    assert server.admin("PATCH", "/models/a", {"pined": True}).status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "x", "path": "relative"}, "path"),
        ({"id": "x", "path": "/nowhere"}, "path"),
        ({"id": "../x", "path": "/tmp"}, "id"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    make_server: MakeServer, body: dict[str, str], param: str
) -> None:
    server = make_server(ONE_DEVICE)
    response = server.admin("POST", "/models", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["hint"]


def test_a_model_whose_files_come_back_can_be_loaded_again(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    path = make_model("a")
    server.add_model("a", path, memory_bytes=100 * MIB)
    config = path / "config.json"
    away = config.rename(path / "away")
    server.stop()
    server.start()
    assert ask(server, "a") == 503
    assert server.model("a")["failure"]["cause"] == "missing_files"
    away.rename(config)
    server.load("a")


def test_load_progress_reaches_those_who_follow_events(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a", load_s=2), memory_bytes=100 * MIB)
    recorder = Recorder(server)
    server.load("a")
    ratios = [
        event["model"]["progress"]["ratio"]
        for event in recorder.of("model")
        if event["model"]["progress"] is not None
    ]
    assert len(ratios) >= 3
    assert ratios == sorted(ratios)
    assert ratios[-1] > ratios[0]


def test_a_request_during_a_deletion_starts_nothing(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE + '[engines]\nstop_timeout = "2s"\n')
    path = make_model("a", ignores_term=True)
    server.add_model("a", path, memory_bytes=100 * MIB)
    server.load("a")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        deletion = pool.submit(server.admin, "DELETE", "/models/a")
        statuses = []
        while not deletion.done():
            statuses.append(ask(server, "a"))
        assert deletion.result().status_code == 204
    assert set(statuses) <= {404, 503}
    assert starts_of(path) == 1
    assert server.stop() == 0


def test_a_client_that_does_not_read_cannot_hold_up_others(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(
        ONE_DEVICE + '[slots]\nmax_wait = "0.5s"\nmin_loaded = "0s"\ndrain_limit = "1s"\n'
    )
    server.add_model("a", make_model("a", token_s=0.01), memory_bytes=600 * MIB)
    server.add_model("b", make_model("b"), memory_bytes=600 * MIB)
    server.load("a")
    body = {"model": "a", "messages": [], "stream": True, "max_tokens": 100_000}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30):
        wait_until(lambda: server.model("a")["in_flight"] == 1)
        started = time.monotonic()
        assert ask(server, "b") == 200
        assert time.monotonic() - started < 8


def test_an_unload_stands_when_the_model_it_was_drained_for_is_no_longer_wanted(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE + '[slots]\nmax_wait = "0.2s"\nmin_loaded = "0s"\n')
    server.add_model("a", make_model("a", token_s=0.05), memory_bytes=600 * MIB)
    server.add_model("b", make_model("b"), memory_bytes=600 * MIB)
    server.load("a")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        busy = pool.submit(ask, server, "a", max_tokens=60)
        wait_until(lambda: server.model("a")["in_flight"] == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/chat/completions",
                json={"model": "b", "messages": []},
                timeout=1.5,
            )
        server.admin("POST", "/models/a/unload")
        assert busy.result() == 200
    wait_until(lambda: server.model("a")["state"] == "stopped")
    assert server.model("b")["state"] == "stopped"


def test_one_broken_checkpoint_neither_stops_the_server_nor_other_models(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(ONE_DEVICE)
    broken = make_model("broken")
    server.add_model("broken", broken, memory_bytes=100 * MIB)
    server.add_model("good", make_model("good"), memory_bytes=100 * MIB)
    (broken / "config.json").write_text('{"text_config": null, "num_attention_heads": "many"}')
    server.stop()
    server.start()
    assert ask(server, "broken") == 503
    assert ask(server, "good") == 200


def test_extreme_settings_are_refused(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(ONE_DEVICE)
    server.add_model("a", make_model("a"), env={"HF_TOKEN": "hidden-value", "MODE": "x"})
    for change in ({"idle_timeout_s": 1e12}, {"kv_cache_bytes": 10**30}, {"tp_size": 0}):
        assert server.admin("PATCH", "/models/a", change).status_code == 400
    assert "hidden-value" not in server.admin("GET", "/state").text
    assert server.model("a")["settings"]["env"]["MODE"] == "x"
