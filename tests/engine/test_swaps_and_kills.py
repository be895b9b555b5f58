"""Real engines: swaps on one simulated device, kills at bad moments, two ranks."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from appliance.engine.proctree import process_info, session_processes
from tests.engine.conftest import MakeServer
from tests.support.recorder import Recorder
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

GIB = 1024**3


def ask(server: ServerProcess, model: str, **fields: object) -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 12,
        "temperature": 0,
        **fields,
    }
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LOAD_S)


def tree_of(server: ServerProcess) -> set[int]:
    return {info.pid for session in server.engine_pids() for info in session_processes(session)}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (info := process_info(pid)) is not None and not info.is_zombie}


def test_two_chat_models_take_turns_on_a_device_that_holds_one(
    make_server: MakeServer, prepared: Path
) -> None:
    models = prepared / "models"
    server = make_server(
        '[[devices.simulated]]\nmemory = "3.9GiB"\nname = "Simulated 4 GB"\n'
        '[slots]\nidle_timeout = "4s"\n'
    )
    server.add_model("minilm", models / "minilm", always_on=True)
    server.add_model("smollm2-135m", models / "smollm2-135m", context_length=2048)
    server.add_model("tiny", models / "tiny", memory_bytes=int(1.5 * GIB))
    wait_until(lambda: server.model("minilm")["state"] == "ready", LOAD_S)
    (base,) = server.engine_pids()
    recorder = Recorder(server)
    for model in ("smollm2-135m", "tiny", "smollm2-135m"):
        assert ask(server, model).status_code == 200, model
        assert base in server.engine_pids()
    transitions = [
        event for event in recorder.of("transition") if "evicted for" in str(event["reason"])
    ]
    evicted = {(event["model"], event["reason"]) for event in transitions}
    assert ("smollm2-135m", "evicted for tiny") in evicted
    assert ("tiny", "evicted for smollm2-135m") in evicted
    swaps = recorder.of("swap")
    assert [swap["model"] for swap in swaps] == ["tiny", "smollm2-135m"]
    assert all(swap["duration_s"] > 1 for swap in swaps)
    wait_until(lambda: server.engine_pids() == [base], 20)
    assert server.model("minilm")["state"] == "ready"


def test_a_killed_server_or_engine_leaves_nothing_and_the_next_request_is_answered(
    make_server: MakeServer, prepared: Path
) -> None:
    server = make_server('[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n')
    path = prepared / "models/smollm2-135m"
    server.add_model("smollm2-135m", path, context_length=2048)

    # During a load.
    server.admin("POST", "/models/smollm2-135m/load")
    wait_until(lambda: len(tree_of(server)) >= 3, LOAD_S, "an engine core")
    pids = tree_of(server)
    server.kill()
    server.start()
    assert not alive(pids)

    # While it streams: first the engine core, then the server.
    assert "Paris" in ask(server, "smollm2-135m").text
    stream = {"stream": True, "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}], **stream}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        (session,) = server.engine_pids()
        core = next(
            info.pid
            for info in session_processes(session)
            if info.name.startswith("VLLM::EngineCor")
        )
        os.kill(core, signal.SIGKILL)
        wait_until(lambda: server.model("smollm2-135m")["state"] != "ready", 1.0)
        rest = [line for line in lines if line]
    assert '"error"' in rest[-1]
    assert "data: [DONE]" not in rest
    assert "Paris" in ask(server, "smollm2-135m").text
    pids = tree_of(server)
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.kill()
        with pytest.raises(httpx.HTTPError):
            list(lines)
    server.start()
    assert not alive(pids)
    assert "Paris" in ask(server, "smollm2-135m").text
    pids = tree_of(server)
    assert server.stop() == 0
    assert not alive(pids)


def test_a_model_split_over_two_devices_answers(make_server: MakeServer, prepared: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("tensor parallelism on the CPU needs two cores")
    server = make_server('[[devices.simulated]]\nmemory = "3GiB"\n' * 2)
    path = prepared / "models/tiny"
    server.add_model("tiny", path, tp_size=2, memory_bytes=int(1.8 * GIB))
    assert ask(server, "tiny").status_code == 200
    shares = server.model("tiny")["placement"]["shares"]
    assert [share["device_index"] for share in shares] == [0, 1]
    used = wait_until(
        lambda: [d["used_bytes"] for d in server.state()["devices"] if d["used_bytes"] > GIB // 4],
        10,
    )
    assert len(used) == 2
