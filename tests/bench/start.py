"""Cold starts, in the plain way and through the launcher, in alternation.

For each model: seconds from the request to its first token, medians of the rounds, and the ratio.
Run by `scripts/bench start [--rounds N] [--json]`; the last line of `--json` is one object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from appliance.engine.proctree import all_processes, proportional_bytes
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n[engines]\nlauncher = {launcher}\n'
MODELS = ("smollm2-135m", "tiny")
MIB = 1024**2


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


def launcher_bytes() -> int:
    """Private and shared memory of the idle launcher."""
    return sum(
        proportional_bytes(info.pid)
        for info in all_processes()
        if info.name.startswith("appliance-launc")
    )


def measure(prepared: Path, rounds: int) -> dict[str, object]:
    """All rounds; servers of both kinds run side by side, one works at a time."""
    with tempfile.TemporaryDirectory() as folder:
        servers = {
            kind: ServerProcess(
                Path(folder) / kind,
                CONFIG.format(launcher="true" if kind == "launcher" else "false"),
                engines=prepared / "engines",
            ).start()
            for kind in ("plain", "launcher")
        }
        try:
            for server in servers.values():
                for model in MODELS:
                    server.add_model(model, prepared / "models" / model, context_length=2048)
                    # The first start of an architecture also inspects it, once for an environment.
                    first_token_s(server, model)
                    unload(server, model)
            idle = launcher_bytes()
            return {"launcher_mib": idle // MIB, **_rounds(servers, rounds)}
        finally:
            for server in servers.values():
                server.end()


def _rounds(servers: dict[str, ServerProcess], rounds: int) -> dict[str, object]:
    report: dict[str, object] = {}
    for model in MODELS:
        seconds: dict[str, list[float]] = {kind: [] for kind in servers}
        answers = set()
        for number in range(rounds):
            for kind, server in servers.items():
                elapsed, answer = first_token_s(server, model)
                unload(server, model)
                seconds[kind].append(elapsed)
                answers.add(answer)
                print(f"  {model} round {number + 1} {kind}: {elapsed:.1f} s", file=sys.stderr)
        ratios = [a / b for a, b in zip(seconds["plain"], seconds["launcher"], strict=True)]
        report[model] = {
            "plain_s": round(statistics.median(seconds["plain"]), 2),
            "launcher_s": round(statistics.median(seconds["launcher"]), 2),
            "speedup": round(statistics.median(ratios), 1),
            "identical": len(answers) == 1,
        }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="cold starts, plain and through the launcher")
    parser.add_argument("prepared", type=Path, help="state directory with engines and models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = measure(args.prepared, args.rounds)
    print(f"{'model':<16}{'plain':>9}{'launcher':>10}{'ratio':>8}  same tokens and logprobs")
    for model in MODELS:
        row = report[model]
        assert isinstance(row, dict)
        print(
            f"{model:<16}{row['plain_s']:>7} s{row['launcher_s']:>8} s{row['speedup']:>7}x"
            f"  {'yes' if row['identical'] else 'no'}"
        )
    print(f"launcher, idle: {report['launcher_mib']} MiB")
    if args.json:
        starter = report[MODELS[0]]
        assert isinstance(starter, dict)
        print(json.dumps({"speedup": starter["speedup"], **report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
