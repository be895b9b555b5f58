"""How long people wait for the first token while a batch runs on the same model.

Questions one after the other, first on the idle engine, then beside a batch that always has work.
Run by `scripts/bench beside [--questions N] [--json]`; the last line of `--json` is one object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import httpx
import msgspec
from openai import OpenAI

from tests.bench.batch import CONFIG, URL, lines_of
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

MODEL = "smollm2-135m"
# People read before they ask again.
PAUSE_S = 0.5


def first_token_s(server: ServerProcess, number: int) -> float:
    """Of one question."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"What is {number} and {number}?"}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
    }
    started = time.monotonic()
    with httpx.stream("POST", f"{server.url}{URL}", json=body, timeout=120) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                return time.monotonic() - started
    raise AssertionError("no token came")


def ask(server: ServerProcess, count: int) -> list[float]:
    """Seconds to the first token of each question, ascending."""
    found = []
    for number in range(count):
        found.append(first_token_s(server, number))
        time.sleep(PAUSE_S)
    return sorted(found)


def measure(state: Path, questions: int) -> dict[str, object]:
    """Idle, then beside a batch."""
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        server = ServerProcess(Path(name) / "home", CONFIG, engines=state / "engines").start()
        try:
            server.add_model(MODEL, state / "models" / MODEL, context_length=512)
            server.load(MODEL)
            ask(server, 3)
            idle = ask(server, questions)
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
            text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines_of(20_000, MODEL))
            file = client.files.create(file=text, purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint=URL, completion_window="24h"
            )

            def done() -> int:
                counts = client.batches.retrieve(batch.id).request_counts
                return counts.completed if counts else 0

            wait_until(lambda: done() > 200, 300)
            # The first question meets a full engine; it is counted.
            before, began = done(), time.monotonic()
            beside = ask(server, questions)
            rate = (done() - before) / (time.monotonic() - began)
            began, before = time.monotonic(), done()
            wait_until(lambda: time.monotonic() - began > 20, 30)
            alone = (done() - before) / (time.monotonic() - began)
        finally:
            server.end()
    idle_p95, beside_p95 = (each[int(len(each) * 0.95) - 1] for each in (idle, beside))
    return {
        "questions": questions,
        "idle_p95_ms": round(idle_p95 * 1000),
        "beside_p95_ms": round(beside_p95 * 1000),
        "worst_beside_ms": round(beside[-1] * 1000),
        "ratio": round(beside_p95 / idle_p95, 2),
        "batch_lines_per_s_beside_people": round(rate, 1),
        "batch_lines_per_s_after": round(alone, 1),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench beside")
    parser.add_argument("state", type=Path)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    result = measure(arguments.state, arguments.questions)
    for name, figure in result.items():
        print(f"{name:34} {figure}")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
