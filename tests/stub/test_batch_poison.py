"""Lines that kill their engine, each time: they fail, and the model goes on."""

from typing import Any

import httpx

from tests.stub.conftest import MakeModel, MakeServer, starts_of
from tests.support.batch_calls import counts_of, find, problem_of, results, submit, wait_for
from tests.support.batches import chat_line
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = (
    '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nretry_first = "0.1s"\nretry_most = "0.2s"\n'
)
LINES = 400
# Alone, side by side, and so far apart that no engine has two of them at once.
POISON = {3, 4, 5, 150, 200, 250, 300, 350}


def line(number: int, *, is_poison: bool) -> dict[str, Any]:
    said = f"{'die before ' if is_poison else ''}line {number}"
    made = chat_line(f"r{number}", text=said)
    made["body"]["max_tokens"] = 2
    return made


def say_hello(server: ServerProcess) -> httpx.Response:
    body = {"model": "a", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_lines_that_kill_engines_fail_and_their_model_waits_for_nobody(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    model = make_model("a", token_s=0.01)
    server = make_server(CONFIG + "[batches]\nmax_concurrency = 16\n")
    server.add_model("a", model)
    batch_id = submit(server, [line(n, is_poison=n in POISON) for n in range(LINES)])
    wait_for(server, batch_id, LINES + 1)
    batch = find(server, batch_id)
    assert batch["status"] == "completed", batch
    errors = results(server, batch["error_file_id"])
    assert errors.keys() == {f"r{number}" for number in POISON}
    for error in errors.values():
        assert error["response"]["status_code"] == 503
        assert "ended while it worked on this request" in str(error["response"]["body"])
    assert batch["request_counts"] == {
        "total": LINES,
        "completed": LINES - len(POISON),
        "failed": len(POISON),
    }
    assert starts_of(model) <= 3 * len(POISON) + 1
    assert say_hello(server).status_code == 200


def test_a_model_that_dies_of_every_line_waits_for_a_person(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    """Its engines are more likely to be broken than all lines are, and no line fails for that."""
    model = make_model("a")
    server = make_server(CONFIG)
    server.add_model("a", model)
    batch_id = submit(server, [line(n, is_poison=True) for n in range(LINES)])
    wait_until(lambda: "could not be loaded" in problem_of(server, batch_id), 60, "it says so")
    assert server.model("a")["failure"]["retry_at"] is None
    assert counts_of(server, batch_id) == 0
    assert starts_of(model) == 5
