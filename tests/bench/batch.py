"""A batch against a bare load generator on the same engine, and against vLLM's own run-batch.

All three work through the same lines, in alternation: the generator asks the engine's socket with
the best of several concurrencies and throws the answers away; run-batch is vLLM's offline program,
without the time in which it loads its engine; the batch goes the whole way, from its creation until
it is completed, with all results on the disk.
Run by `scripts/bench batch [--lines N] [--rounds N] [--json]`; the last line of `--json` is one
object.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from openai import OpenAI

from appliance.engine.command import build_base_env
from appliance.engine.connection import EngineConnections
from appliance.engine.environments import EnvironmentStore
from appliance.protocol.devices import DeviceKind
from tests.support.server import ServerProcess

CONFIG = '[devices]\nsource = "cpu"\ncpu_memory = "12GiB"\n'
CONCURRENCIES = (128, 256, 512)
LOOK_S = 0.5
URL = "/v1/chat/completions"
MIB = 1024**2


def lines_of(count: int, model: str) -> list[dict[str, Any]]:
    """Short questions, short answers."""
    return [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": URL,
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": f"Say {number}"}],
                "max_tokens": 8,
                "temperature": 0,
            },
        }
        for number in range(count)
    ]


def socket_of(server: ServerProcess) -> Path:
    """The engine's, of the only model that is loaded."""
    (socket,) = (server.home / "run" / "engines").glob("*.sock")
    return socket


async def bare(socket: Path, bodies: list[bytes], concurrency: int) -> float:
    """Requests per second of a generator that does nothing else."""
    connections = EngineConnections(socket)
    left = iter(bodies)
    headers = [(b"content-type", b"application/json")]

    async def work() -> None:
        for body in left:
            response = await connections.request("POST", URL, headers=headers, body=body)
            await response.read()
            assert response.status == 200

    started = time.monotonic()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    took_s = time.monotonic() - started
    connections.close()
    return len(bodies) / took_s


def batch(client: OpenAI, lines: list[dict[str, Any]]) -> float:
    """Lines per second from the creation until all is on the disk."""
    text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    file = client.files.create(file=text, purpose="batch")
    started = time.monotonic()
    made = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    while (done := client.batches.retrieve(made.id)).status != "completed":
        assert time.monotonic() - started < 3600, done
        time.sleep(LOOK_S)
    took_s = time.monotonic() - started
    assert done.request_counts is not None
    assert done.request_counts.completed == len(lines), done
    for file_id in (file.id, done.output_file_id):
        assert file_id is not None
        client.files.delete(file_id)
    return len(lines) / took_s


def run_batch(state: Path, lines: list[dict[str, Any]], work: Path) -> float | None:
    """Lines per second of vLLM's own program, by its own count; None if it does not work here."""
    environment = EnvironmentStore(state / "engines").get(None)
    source, target = work / "in.jsonl", work / "out.jsonl"
    source.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    argv = [
        environment.launch[0], "-m", "vllm.entrypoints.openai.run_batch",
        "-i", str(source), "-o", str(target), "--model", str(state / "models/tiny"),
        "--served-model-name", "tiny", "--max-model-len", "128", "--enforce-eager",
        "--kv-cache-memory-bytes", str(256 * MIB),
    ]  # fmt: skip
    env = build_base_env(DeviceKind.CPU, environment, work / "cache", {"PATH": "/usr/bin:/bin"})
    # As its users run it, without what the appliance does for its engines.
    del env["GOMP_SPINCOUNT"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=900, check=False)
    # "Running batch: 100% Completed | 4000/4000 [00:09<00:00, 434.50req/s]": of the lines alone.
    shown = re.findall(rf"{len(lines)}/{len(lines)} \[[^\]]*?([\d.]+) ?\w+/s\]", done.stderr)
    if done.returncode or not shown:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return float(shown[-1])


def measure(state: Path, count: int, rounds: int, *, with_run_batch: bool) -> dict[str, Any]:
    """All ways, in alternation."""
    lines = lines_of(count, "tiny")
    bodies = [msgspec.json.encode(line["body"]) for line in lines]
    found: dict[str, list[float]] = {"bare": [], "batch": [], "run_batch": []}
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        server = ServerProcess(Path(name) / "home", CONFIG, engines=state / "engines").start()
        try:
            server.add_model("tiny", state / "models/tiny", kv_cache_bytes=256 * MIB)
            server.load("tiny")
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
            few = bodies[: max(count // 4, 200)]
            rates = {
                each: asyncio.run(bare(socket_of(server), few, each)) for each in CONCURRENCIES
            }
            best = max(rates, key=lambda each: rates[each])
            print({each: round(rate, 1) for each, rate in rates.items()}, f"best: {best}")
            for number in range(rounds):
                found["bare"].append(asyncio.run(bare(socket_of(server), bodies, best)))
                found["batch"].append(batch(client, lines))
                if with_run_batch and (rate := run_batch(state, lines, Path(name))) is not None:
                    found["run_batch"].append(rate)
                print(number, {way: round(each[-1], 1) for way, each in found.items() if each})
        finally:
            server.end()
    medians = {way: statistics.median(each) for way, each in found.items() if each}
    ratios = [ours / theirs for ours, theirs in zip(found["batch"], found["bare"], strict=True)]
    return {
        "lines": count,
        "concurrency": best,
        "lines_per_s": {way: round(rate, 1) for way, rate in medians.items()},
        "of_bare": round(statistics.median(ratios), 3),
        "of_run_batch": round(medians["batch"] / medians["run_batch"], 3)
        if "run_batch" in medians
        else None,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench batch")
    parser.add_argument("state", type=Path)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-run-batch", action="store_true")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    result = measure(
        arguments.state,
        arguments.lines,
        arguments.rounds,
        with_run_batch=not arguments.no_run_batch,
    )
    for way, rate in result["lines_per_s"].items():
        print(f"{way:10} {rate:8.1f} lines/s")
    print(f"batch: {result['of_bare']:.0%} of the bare generator at its best")
    if result["of_run_batch"]:
        print(f"batch: {result['of_run_batch']:.0%} of vLLM's run-batch")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
