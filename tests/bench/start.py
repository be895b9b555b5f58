"""Cold starts and private memory, in the plain way and through the launcher, in alternation.

For each model: seconds from the request to its first token, and the memory that belongs to the
engine alone after it (USS of all of its processes, with an equal KV cache); medians of the rounds.
The third way is the command line that vLLM itself would choose: a worker process of its own. All
ratios are of times from the same round.
Run by `scripts/bench start [--rounds N] [--json]`; the last line of `--json` is one object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec

from appliance.engine.environments import EnvironmentStore
from appliance.engine.proctree import all_processes, proportional_bytes, session_processes
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[devices]\nsource = "cpu"\ncpu_memory = "12GiB"\n[engines]\nlauncher = {launcher}\n'
MODELS = ("smollm2-135m", "tiny")
MIB = 1024**2
KV_CACHE_BYTES = 256 * MIB
WAYS = ("plain", "launcher", "vllm_default")
# The server sets the executor of CPU engines, so what it starts here takes that back.
AS_VLLM = """
import os, sys
words = sys.argv[1:]
words[words.index("--distributed-executor-backend") + 1] = "mp"
os.execv(words[0], words)
"""
SECONDS = {way: f"{way}_s" for way in WAYS}
PRIVATE = {way: f"private_mib_{way}" for way in WAYS}


def first_token_s(server: ServerProcess, model: str) -> tuple[float, str]:
    """Load by a request: seconds to the first token, and the whole answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 12,
        "stream": True,
        "logprobs": True,
    }
    started = time.monotonic()
    first = None
    parts = []
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=300) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                if choice["delta"].get("content"):
                    first = first or time.monotonic() - started
                    logprobs = (choice.get("logprobs") or {}).get("content") or []
                    parts += [(each["token"], each["logprob"]) for each in logprobs]
    assert first is not None, f"{model} gave no token"
    return first, json.dumps(parts)


def unload(server: ServerProcess, model: str) -> None:
    server.admin("POST", f"/models/{model}/unload")
    wait_until(lambda: server.model(model)["state"] == "stopped", 60)


def launcher_mib(server: ServerProcess) -> int:
    """Private and shared memory of the server's idle launcher."""
    assert server.process is not None
    return sum(
        proportional_bytes(info.pid) // MIB
        for info in all_processes()
        if info.ppid == server.process.pid and info.name.startswith("appliance-launc")
    )


def private_mib(server: ServerProcess) -> int:
    """Memory that nobody but the one engine of this server has."""
    (session,) = server.engine_pids()
    total_kib = 0
    for info in session_processes(session):
        for line in Path(f"/proc/{info.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total_kib += int(line.split()[1])
    return total_kib // 1024


def engines_as_vllm(prepared: Path, folder: Path) -> Path:
    """An engine environment that starts vLLM with the executor of its own choice."""
    record = EnvironmentStore(prepared / "engines").get()
    launch = [sys.executable, "-c", AS_VLLM, *record.launch]
    EnvironmentStore(folder).add(msgspec.structs.replace(record, launch=launch))
    return folder


def make_server(way: str, prepared: Path, folder: Path, engines: Path) -> ServerProcess:
    """A server that starts its engines in this way and knows what scripts/test has found out."""
    config = CONFIG.format(launcher="true" if way == "launcher" else "false")
    server = ServerProcess(folder / way, config, engines=engines)
    cache = server.paths.cache / "vllm"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.symlink_to(prepared.parent / "cache/vllm")
    return server.start()


def measure(prepared: Path, rounds: int) -> dict[str, Any]:
    """All rounds; servers of all kinds run side by side, one works at a time."""
    with tempfile.TemporaryDirectory() as folder:
        engines = dict.fromkeys(WAYS, prepared / "engines")
        engines["vllm_default"] = engines_as_vllm(prepared, Path(folder) / "engines")
        servers = {way: make_server(way, prepared, Path(folder), engines[way]) for way in WAYS}
        try:
            for server in servers.values():
                for model in MODELS:
                    server.add_model(
                        model,
                        prepared / "models" / model,
                        context_length=2048,
                        kv_cache_bytes=KV_CACHE_BYTES,
                    )
                    # The launcher imports, and files are read for the first time.
                    first_token_s(server, model)
                    unload(server, model)
            idle = launcher_mib(servers["launcher"])
            assert idle, "engines are not forked: appliance engine list"
            return {
                "launcher_mib": idle,
                **{model: _rounds(servers, model, rounds) for model in MODELS},
            }
        finally:
            for server in servers.values():
                server.end()


def _rounds(servers: dict[str, ServerProcess], model: str, rounds: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {name: [] for name in (*SECONDS.values(), *PRIVATE.values())}
    answers: dict[str, set[str]] = {way: set() for way in servers}
    for number in range(rounds):
        for way, server in servers.items():
            elapsed, answer = first_token_s(server, model)
            private = private_mib(server)
            unload(server, model)
            figures[SECONDS[way]].append(elapsed)
            figures[PRIVATE[way]].append(private)
            answers[way].add(answer)
            line = f"  {model} round {number + 1} {way}: {elapsed:.1f} s, {private} MiB"
            print(line, file=sys.stderr)
    medians = {name: round(statistics.median(values), 2) for name, values in figures.items()}
    return {
        **medians,
        "speedup": _ratio(figures, "plain"),
        "speedup_vllm_default": _ratio(figures, "vllm_default"),
        "saved_mib": round(medians[PRIVATE["plain"]] - medians[PRIVATE["launcher"]]),
        "saved_mib_vllm_default": round(
            medians[PRIVATE["vllm_default"]] - medians[PRIVATE["launcher"]]
        ),
        "identical": len(answers["plain"] | answers["launcher"]) == 1,
    }


def _ratio(figures: dict[str, list[float]], way: str) -> float:
    pairs = zip(figures[SECONDS[way]], figures[SECONDS["launcher"]], strict=True)
    return round(statistics.median(slow / fast for slow, fast in pairs), 1)


def show(report: dict[str, Any]) -> None:
    """Tables for people."""
    for model in MODELS:
        row = report[model]
        same = "the same" if row["identical"] else "OTHER"
        print(f"{model}: {same} tokens and log-probabilities, plain and through the launcher")
        for way in ("launcher", "plain", "vllm_default"):
            line = f"  {way:<14}{row[SECONDS[way]]:>7.1f} s{row[PRIVATE[way]]:>8.0f} MiB private"
            if way != "launcher":
                key = "" if way == "plain" else f"_{way}"
                line += f"  {row['speedup' + key]:>5}x, saved {row['saved_mib' + key]} MiB"
            print(line)
    print(f"launcher, idle: {report['launcher_mib']} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description="cold starts, plain and through the launcher")
    parser.add_argument("prepared", type=Path, help="state directory with engines and models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = measure(args.prepared, args.rounds)
    show(report)
    if args.json:
        starter = report[MODELS[0]]
        names = ("speedup", "speedup_vllm_default", "saved_mib", "saved_mib_vllm_default")
        print(json.dumps({**{name: starter[name] for name in names}, **report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
