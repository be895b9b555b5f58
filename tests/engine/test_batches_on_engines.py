"""Batches on real engines: killed at any instant, beside people, over more models than fit."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.engine.proctree import session_processes
from tests.engine.conftest import MakeServer
from tests.support.batch_calls import (
    CHAT,
    counts_of,
    find,
    is_over,
    results,
    submit,
    wait_for,
)
from tests.support.recorder import Recorder
from tests.support.server import LOAD_S, ServerProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

GIB = 1024**3
# Far more kills in an hour than a model may have failures.
KILLS = (
    '[devices]\nsource = "cpu"\ncpu_memory = "4GiB"\n'
    '[engines]\nretry_first = "0.1s"\nretry_most = "1s"\nmax_attempts = 10000\n'
    "[batches]\nmax_concurrency = 16\n"
)
# Room for one of the models below.
ONE_AT_A_TIME = '[[devices.simulated]]\nmemory = "2.2GiB"\n'
EACH = {"memory_bytes": int(1.5 * GIB)}
ROUNDS = 4
LINES = 300
MANY_LINES = 2000
REFUSED_EVERY = 25
WORDS = ("river", "stone", "lamp", "copper", "seven", "garden", "winter", "engine", "paper")


def line(number: int, model: str = "tiny", *, words: int = 12) -> dict[str, Any]:
    """Prompts of different lengths, and now and then one that vLLM refuses."""
    chance = random.Random(number)
    said = " ".join(chance.choices(WORDS, k=chance.randrange(1, 20)))
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": CHAT,
        "body": {
            "model": model,
            "messages": [{"role": "user", "content": f"{number}: {said}?"}],
            "max_tokens": -1 if number % REFUSED_EVERY == 0 else chance.randrange(1, 2 * words),
            "temperature": 0,
            "seed": 1,
            "ignore_eos": True,
        },
    }


def answers_of(server: ServerProcess, batch_id: str, lines: int) -> dict[str, Any]:
    """What was answered to each line, once every line is found in the one file where it belongs."""
    batch = find(server, batch_id)
    assert batch["status"] == "completed", batch
    output = results(server, batch["output_file_id"])
    errors = results(server, batch["error_file_id"])
    refused = {f"r{number}" for number in range(0, lines, REFUSED_EVERY)}
    assert errors.keys() == refused
    assert {each["response"]["status_code"] for each in errors.values()} == {400}
    assert output.keys() == {f"r{number}" for number in range(lines)} - refused
    counts = {"total": lines, "completed": len(output), "failed": len(errors)}
    assert batch["request_counts"] == counts
    bodies = {custom_id: each["response"]["body"] for custom_id, each in output.items()}
    spent = sum(body["usage"]["total_tokens"] for body in bodies.values())
    assert batch["usage"]["total_tokens"] == spent
    return {
        custom_id: (body["choices"][0], body["usage"]["total_tokens"])
        for custom_id, body in bodies.items()
    }


def kill_core(server: ServerProcess) -> bool:
    """SIGKILL to an engine core; whether there was one."""
    for session in server.engine_pids():
        for info in session_processes(session):
            if info.name.startswith("VLLM::EngineCor"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(info.pid, signal.SIGKILL)
                    return True
    return False


def kill_at_random(
    server: ServerProcess, rounds: int, seed: int, lines: int
) -> tuple[int, dict[str, int]]:
    """Servers and engine cores are killed while batches run; how many batches, and what died.

    Every batch ends with the answers of one that nobody disturbed.
    """
    chance = random.Random(seed)
    requests = [line(number) for number in range(lines)]
    began = time.monotonic()
    undisturbed = submit(server, requests)
    wait_for(server, undisturbed, 1)
    load_s = time.monotonic() - began
    wait_for(server, undisturbed, lines + 1)
    work_s = time.monotonic() - began - load_s
    expected = answers_of(server, undisturbed, lines)
    batches = 0
    killed = {"server": 0, "engine": 0}
    while sum(killed.values()) < rounds:
        batch_id = submit(server, requests)
        batches += 1
        known = 0
        while sum(killed.values()) < rounds and not is_over(server, batch_id):
            assert server.process is not None
            is_engine = sum(killed.values()) % 2 == 1
            # Engines mostly amid their work; the server also while one loads.
            if is_engine:
                wait_for(server, batch_id, known + 1)
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(chance.uniform(0, work_s / 2 if is_engine else load_s))
            now = counts_of(server, batch_id)
            assert now >= known, "what was counted is not any more"
            known = now
            if is_engine:
                killed["engine"] += kill_core(server)
                continue
            server.kill()
            killed["server"] += 1
            server.start()
            wait_for(server, batch_id, known, 30)
        wait_for(server, batch_id, lines + 1, 600)
        found = answers_of(server, batch_id, lines)
        others = {
            each: (expected[each], found[each])
            for each in expected
            if found[each] != expected[each]
        }
        assert not others, f"{len(others)} other answers: {dict(list(others.items())[:3])}"
    return batches, killed


def test_lines_end_once_with_the_same_answers_whatever_is_killed(
    make_server: MakeServer, prepared: Path
) -> None:
    """vLLM on the CPU answers the same however it batches, so all of an answer is compared."""
    server = make_server(KILLS)
    server.add_model("tiny", prepared / "models/tiny")
    seed = random.randrange(10**6)
    batches, killed = kill_at_random(server, ROUNDS, seed, LINES)
    assert killed["server"] == killed["engine"] == ROUNDS // 2, (seed, batches, killed)


def ask(server: ServerProcess, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return httpx.post(f"{server.url}{CHAT}", json=body, timeout=LOAD_S)


def starts(recorder: Recorder) -> list[str]:
    """Models in the order in which engines were started for them."""
    return [each["model"] for each in recorder.of("transition") if each["before"] == "starting"]


def test_people_get_another_model_while_a_batch_runs_and_the_batch_ends_afterwards(
    make_server: MakeServer, prepared: Path
) -> None:
    turn_s, drain_limit_s = 4.0, 3.0
    server = make_server(
        f'{ONE_AT_A_TIME}[slots]\ndrain_limit = "{drain_limit_s}s"\nbatch_turn = "{turn_s}s"\n'
        # Otherwise it waits for minutes in which a person may come back.
        'batch_max_wait = "5s"\n'
    )
    server.add_model("tiny", prepared / "models/tiny", **EACH)
    smol = prepared / "models/smollm2-135m"
    server.add_model("smollm2-135m", smol, context_length=2048, **EACH)
    assert ask(server, "smollm2-135m").status_code == 200
    began = time.monotonic()
    assert ask(server, "tiny").status_code == 200
    swap_s = time.monotonic() - began

    recorder = Recorder(server)
    # Longer answers than the limit allows, so that they are given up and asked again.
    lines = 32
    requests = [line(number, "smollm2-135m", words=40) for number in range(lines)]
    batch_id = submit(server, requests)
    wait_for(server, batch_id, 4)
    began = time.monotonic()
    answer = ask(server, "tiny")
    answered_s = time.monotonic() - began
    assert answer.status_code == 200, answer.text
    assert not is_over(server, batch_id)
    (drained,) = [
        each
        for each in recorder.of("transition")
        if each["model"] == "smollm2-135m" and each["before"] == "draining"
    ]
    assert drained["duration_s"] < drain_limit_s + 1.0
    print(f"swap {swap_s:.1f} s, drain {drained['duration_s']:.1f} s, answer {answered_s:.1f} s")
    # How long a swap takes is as much the machine's as ours.
    assert answered_s < turn_s + drain_limit_s + 2 * swap_s
    wait_for(server, batch_id, lines + 1)
    answers_of(server, batch_id, lines)
    assert starts(recorder) == ["smollm2-135m", "tiny", "smollm2-135m"]


def test_two_batches_over_three_models_load_each_once(
    make_server: MakeServer, prepared: Path, tmp_path: Path
) -> None:
    server = make_server(ONE_AT_A_TIME)
    models = ["tiny", "tiny-2", "tiny-3"]
    for model in models:
        shutil.copytree(prepared / "models/tiny", tmp_path / model)
        server.add_model(model, tmp_path / model, **EACH)
    recorder = Recorder(server)
    requests = [line(number, models[number % len(models)]) for number in range(LINES)]
    with ThreadPoolExecutor(2) as pool:
        ids: Sequence[str] = list(pool.map(lambda _: submit(server, requests), range(2)))
    for batch_id in ids:
        wait_for(server, batch_id, LINES + 1)
    first, second = (answers_of(server, batch_id, LINES) for batch_id in ids)
    assert first == second
    assert sorted(starts(recorder)) == models
