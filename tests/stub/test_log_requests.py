"""Logs through the server: filters, cursors, and what is refused."""

import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer
from tests.support.server import ServerProcess

CONFIG = '[[devices.simulated]]\nmemory = "1256MiB"\n'


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    server.add_model("m", make_model("m", prints=40), memory_bytes=100 * MIB)
    server.load("m")
    return server


def logs(server: ServerProcess, **query: Any) -> httpx.Response:
    words = "&".join(f"{key}={value}" for key, value in query.items())
    return server.admin("GET", f"/engines/m/logs?{words}")


def test_lines_are_filtered_by_the_server(server: ServerProcess) -> None:
    last = logs(server, tail=2, grep="OF%20MANY").json()
    assert [match["text"] for match in last["matches"]] == ["line 38 of many", "line 39 of many"]
    older = logs(server, tail=1, grep="of%20many", before=last["scanned_from"]).json()
    assert [match["text"] for match in older["matches"]] == ["line 37 of many"]
    assert older["matches"][0]["line"] == last["matches"][0]["line"] - 1
    on = logs(server, **{"from": older["scanned_to"], "n": 100, "grep": "of%20many"}).json()
    assert (on["matches"], on["is_complete"]) == (last["matches"], True)
    assert logs(server, level="error").json()["matches"] == []
    assert logs(server, tail=3, before=4).json()["first_line"] == 1
    for query in (
        {"from": 1, "before": 5},
        {"from": 1, "tail": 5},
        {"grep": "a%0Ab"},
        {"level": "loud"},
        {"before": 0},
    ):
        assert logs(server, **query).status_code == 400, query


def test_command_shows_and_follows_matching_lines(server: ServerProcess) -> None:
    def appliance(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "appliance", "logs", "m", *words],
            env=server.env, capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    assert appliance("--grep", "Of Many", "-n", "2") == "line 38 of many\nline 39 of many\n"
    assert appliance("--grep", "nowhere") == ""
    assert '"is_complete": true' in appliance("--grep", "nowhere", "--json")
    follower = subprocess.Popen(
        [sys.executable, "-m", "appliance", "logs", "m", "-f", "-n", "1", "--grep", "line 3"],
        env=server.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout is not None
    with follower.stdout as output:
        assert output.readline() == "line 39 of many\n"
        # The engine ends, and with it the stream.
        server.admin("POST", "/models/m/unload")
        assert output.read() == ""
    assert follower.wait(20) == 0
