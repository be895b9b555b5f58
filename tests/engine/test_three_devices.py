"""Real engines: three models on three devices that cannot hold all of them, one of them split."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.engine.proctree import session_processes
from tests.engine.conftest import MakeServer
from tests.support.recorder import Recorder
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROUNDS = 2
CHAT = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
    "temperature": 0,
}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("chat/completions", CHAT),
    "smollm2-135m": ("chat/completions", CHAT),
    "minilm": ("embeddings", {"input": "hello"}),
}


def ask(server: ServerProcess, model: str) -> dict[str, Any]:
    path, fields = REQUESTS[model]
    response = httpx.post(
        f"{server.url}/v1/{path}", json={"model": model, **fields}, timeout=2 * LOAD_S
    )
    assert response.status_code == 200, (model, response.text)
    return dict(response.json())


def content_of(answer: dict[str, Any]) -> object:
    """What the model said, or its embedding."""
    if "data" in answer:
        return answer["data"][0]["embedding"]
    return answer["choices"][0]["message"]["content"]


class Watch:
    """Looks at the devices all the time, and keeps what must not be."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.looks = 0
        self.wrong: list[str] = []
        self.together: set[frozenset[str]] = set()
        """Models that were on one device at once."""
        self.stop = threading.Event()

    def look(self) -> None:
        for device in self.server.state()["devices"]:
            occupants = device["occupants"]
            reserved = sum(occupant["reserved_bytes"] for occupant in occupants)
            for name, size in (("promised", reserved), ("used", device["used_bytes"])):
                if size > device["total_bytes"]:
                    self.wrong.append(f"{name} {size} on device {device['index']}: {occupants}")
            self.together.add(frozenset(occupant["model"] for occupant in occupants))
        self.looks += 1

    def run(self) -> None:
        while not self.stop.wait(0.05):
            self.look()


@contextmanager
def watched(server: ServerProcess) -> Iterator[Watch]:
    watch = Watch(server)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(watch.run)
        try:
            yield watch
        finally:
            watch.stop.set()
            looking.result()


def ranks_of(server: ServerProcess) -> int:
    return sum(
        info.name.startswith("VLLM::Worker")
        for session in server.engine_pids()
        for info in session_processes(session)
    )


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="tensor parallelism on the CPU needs two cores"
)
def test_three_models_one_of_them_split_take_turns_on_three_devices(
    make_server: MakeServer, prepared: Path
) -> None:
    # Each device holds one engine, or one rank. Two of three are always the place of another, so
    # that the split one has to come and go as well.
    server = make_server(
        '[[devices.simulated]]\nmemory = "2.2GiB"\n' * 3
        + '[slots]\nmax_wait = "2s"\nmin_loaded = "1s"\n'
    )
    server.add_model("tiny", prepared / "models/tiny", tp_size=2)
    chat = prepared / "models/smollm2-135m"
    server.add_model("smollm2-135m", chat, context_length=2048, devices=["1"])
    server.add_model("minilm", prepared / "models/minilm", devices=["0"])
    recorder = Recorder(server)
    with watched(server) as watch:
        ask(server, "tiny")
        shares = server.model("tiny")["placement"]["shares"]
        assert len({share["device_index"] for share in shares}) == 2
        assert ranks_of(server) == 2

        # One after the other, so that each one's turn is the end of another's.
        first = {model: content_of(ask(server, model)) for model in REQUESTS}
        for _ in range(ROUNDS - 1):
            for model, content in first.items():
                assert content_of(ask(server, model)) == pytest.approx(content, abs=1e-3)

        # All at once, each client as fast as it is answered.
        with ThreadPoolExecutor(len(REQUESTS)) as pool:
            for _ in range(ROUNDS):
                answers = pool.map(lambda model: ask(server, model), REQUESTS)
                for model, answer in zip(REQUESTS, answers, strict=True):
                    assert content_of(answer) == pytest.approx(first[model], abs=1e-3)
    assert watch.wrong == []
    assert watch.looks > 50
    assert all(len(models) <= 1 for models in watch.together)
    swapped = {swap["model"] for swap in recorder.of("swap")}
    assert swapped == set(REQUESTS)
    failed = [event for event in recorder.of("transition") if event["after"] == "failed"]
    assert failed == []


def test_two_models_live_on_one_device_and_answer_at_once(
    make_server: MakeServer, prepared: Path
) -> None:
    server = make_server('[[devices.simulated]]\nmemory = "3.4GiB"\n')
    server.add_model("smollm2-135m", prepared / "models/smollm2-135m", context_length=2048)
    server.add_model("minilm", prepared / "models/minilm")
    recorder = Recorder(server)
    both = ["smollm2-135m", "minilm"]
    with watched(server) as watch, ThreadPoolExecutor(len(both)) as pool:
        for _ in range(ROUNDS):
            answers = list(pool.map(lambda model: ask(server, model), both))
            assert "Paris" in str(content_of(answers[0]))
    assert watch.wrong == []
    assert frozenset(both) in watch.together
    assert recorder.of("swap") == []
    (device,) = server.state()["devices"]
    assert {occupant["model"] for occupant in device["occupants"]} == set(both)

    def is_measured() -> bool:
        occupants = server.state()["devices"][0]["occupants"]
        return all(occupant["used_bytes"] > 0 for occupant in occupants)

    wait_until(is_measured, 15, "measured memory")
