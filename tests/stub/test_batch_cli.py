"""`appliance batch` as people type it, against a running server."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.client import ServerClient
from appliance.cli.main import main
from tests.stub.conftest import MakeModel, MakeServer
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[[devices.simulated]]\nmemory = "16GiB"\n[batches]\nmax_concurrency = 4\n'


@dataclass
class Said:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    server.add_model("a", make_model("a", token_s=0.01))
    server.add_model("b", make_model("b"))
    return server


@pytest.fixture(autouse=True)
def closed_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command leaves its connections to the end of its process; here there is none."""
    made: list[ServerClient] = []
    begin = ServerClient.__init__

    def remembered(self: ServerClient, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(ServerClient, "__init__", remembered)
    yield
    for client in made:
        client.close()


@pytest.fixture
def cli(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    for name, value in server.env.items():
        if name.startswith("APPLIANCE_"):
            monkeypatch.setenv(name, value)

    def run(*words: str) -> Said:
        try:
            status = main(["batch", *words])
        except SystemExit as error:
            status = int(error.code or 0)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


def request(custom_id: str, model: str = "a", **body: Any) -> dict[str, Any]:
    wanted = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "model": model}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": wanted | body,
    }


def write(file: Path, *requests: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(each) + "\n" for each in requests))
    return str(file)


def test_a_file_is_submitted_followed_listed_and_fetched(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", *(request(f"r{number}") for number in range(12)))
    made = cli("submit", file, "--wait", "--metadata", "run=1")
    assert made.status == 0, made.err
    batch_id = made.out.strip()
    assert "completed" in made.err
    assert "12/12" in made.err
    listed = cli("ls").out
    assert batch_id[:14] in listed
    assert "12/12" in listed
    shown = cli("show", batch_id[:12]).out
    assert "12 answered and 0 failed of 12" in shown
    assert "run=1" in shown
    assert cli("show", batch_id[6:14], "--json").json()["batch"]["id"] == batch_id
    lines = cli("fetch", batch_id).out.splitlines()
    assert {json.loads(line)["custom_id"] for line in lines} == {f"r{n}" for n in range(12)}
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    fetched = cli("fetch", batch_id, "--output", str(output), "--errors", str(errors), "--json")
    assert fetched.json()["status"] == "completed"
    assert output.read_text().splitlines() == lines
    assert errors.read_bytes() == b""
    assert not list(tmp_path.glob(".*"))


def pipe(monkeypatch: pytest.MonkeyPatch, *requests: dict[str, Any]) -> None:
    text = "".join(json.dumps(each) + "\n" for each in requests)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_a_batch_may_come_from_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(f"r{number}", model="nobody") for number in range(3)]
    pipe(monkeypatch, *requests)
    sound = cli("validate", "-", "--model", "a")
    assert sound.status == 0, sound.err
    assert "stdin.jsonl is sound: 3 requests to /v1/chat/completions for a." in sound.out
    pipe(monkeypatch, *requests)
    assert "line 1: The provided model 'nobody'" in cli("submit", "-").err
    assert cli("ls", "--json").json() == []
    # Read once, for both models.
    pipe(monkeypatch, *requests)
    made = cli("submit", "-", "--wait", "--model", "a", "--model", "b", "--json")
    assert made.status == 0, made.err
    assert [batch["model"] for batch in made.json()] == ["a", "b"]
    assert [batch["request_counts"]["completed"] for batch in made.json()] == [3, 3]
    pipe(monkeypatch)
    assert cli("submit", "-").status == 1


def test_what_is_wrong_is_said_by_line_before_anything_is_uploaded(
    cli: Cli, server: ServerProcess, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    lines = [json.dumps(request("r1")), "{broken", json.dumps(request("r1")),
             json.dumps(request("r4", model="nobody"))]  # fmt: skip
    bad.write_text("\n".join(lines))
    for verb in ("validate", "submit"):
        said = cli(verb, str(bad))
        assert said.status == 1
        assert "line 2: This line is not parseable" in said.err
        assert "line 3: The custom_id" in said.err
        assert "line 4: The provided model 'nobody'" in said.err
        assert [each["line"] for each in cli(verb, str(bad), "--json").json()["data"]] == [2, 3, 4]
    assert cli("ls", "--json").json() == []
    assert not list(server.paths.files.iterdir())
    assert cli("submit", str(tmp_path / "none")).status == 2
    assert cli("submit", str(bad), "--metadata", "novalue").status == 2


def test_a_file_is_checked_without_a_server_but_for_names_of_models(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", request("r1", model="whatever"), request("r2", model="x"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "appliance", "batch", *words],
            env={**os.environ, "APPLIANCE_HOME": str(tmp_path / "home")},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    sound = run("validate", file)
    assert sound.returncode == 0, sound.stderr
    assert "2 requests to /v1/chat/completions for whatever, x" in sound.stdout
    assert "not checked" in sound.stderr
    assert json.loads(run("validate", file, "--json", "--model", "y").stdout)["models"] == ["y"]
    assert run("validate", file, "--endpoint", "/v1/embeddings").returncode == 1
    listed = run("ls")
    assert (listed.returncode, "No server runs here" in listed.stderr) == (1, True)


def test_failed_lines_are_shown_and_tried_again(cli: Cli, tmp_path: Path) -> None:
    bad = request("bad", user="bad request")
    file = write(tmp_path / "in.jsonl", request("r0"), bad, request("r2"))
    made = cli("submit", file, "--wait", "--metadata", "run=7")
    first = made.out.strip()
    refused = cli("show", first, "--json").json()["batch"]["request_counts"]
    assert refused == {"total": 3, "completed": 2, "failed": 1}
    assert made.status == 1
    assert "line 2 bad: 400" in cli("show", first).out
    again = cli("retry", first, "--json", "--wait")
    assert again.status == 1
    [batch] = again.json()
    assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    assert batch["metadata"] == {"run": "7", "retry_of": first}
    nothing = cli("fetch", batch["id"])
    assert nothing.status == 1
    assert "--errors FILE" in nothing.err
    errors = tmp_path / "errors.jsonl"
    assert cli("fetch", batch["id"], "--errors", str(errors)).status == 0
    assert json.loads(errors.read_text())["custom_id"] == "bad"
    done = cli("submit", write(tmp_path / "ok.jsonl", request("r")), "--wait").out.strip()
    assert "Every line" in cli("retry", done).err


def test_a_batch_is_paused_watched_through_a_restart_and_cancelled(
    cli: Cli, server: ServerProcess, tmp_path: Path
) -> None:
    file = write(tmp_path / "in.jsonl", *(request(f"r{n}", max_tokens=20) for n in range(400)))
    batch_id = cli("submit", file).out.strip()
    assert cli("fetch", batch_id).status == 1
    assert cli("retry", batch_id).status == 1
    assert "Paused" in cli("pause", batch_id[:10]).out
    assert "paused" in cli("ls").out
    watching = subprocess.Popen(
        [sys.executable, "-m", "appliance", "batch", "watch", batch_id, "--json"],
        env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["is_paused"] is True
    server.stop()
    server.start()
    assert "paused" in cli("ls").out
    assert "Resumed" in cli("resume", batch_id).out
    wait_until(
        lambda: cli("show", batch_id, "--json").json()["batch"]["request_counts"]["completed"] > 0,
        30,
    )
    assert cli("cancel", batch_id).status == 0
    said, complaints = watching.communicate(timeout=60)
    assert (watching.returncode, complaints) == (1, "")
    last = json.loads(said.splitlines()[-1])["batch"]
    assert last["status"] == "cancelled"
    assert last["request_counts"]["completed"] > 0
    assert cli("pause", batch_id).status == 1
    assert cli("show", "batch_00").status == 1


def test_two_models_are_compared_by_custom_id(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", *(request(f"r{n}", model="nobody") for n in range(25)))
    table = cli("compare", file, "--model", "a", "--model", "b")
    assert table.status == 0, table.err
    first, *_ = table.out.splitlines()
    assert first.split() == ["CUSTOM_ID", "a", "b"]
    assert "25 of 25 answers are the same" in table.out
    assert "5 more rows" in table.out
    ids = [each["batch"]["id"] for each in cli("ls", "--json").json()]
    assert len(ids) == 2
    rows = [json.loads(line) for line in cli("compare", *ids, "--json").out.splitlines()]
    assert [row["custom_id"] for row in rows] == [f"r{number}" for number in range(25)]
    assert rows[0]["answers"]["a"]["text"] == rows[0]["answers"]["b"]["text"]
    assert rows[0]["answers"]["a"]["usage"]
    output = tmp_path / "rows.jsonl"
    assert cli("compare", *ids, "--output", str(output)).status == 0
    assert len(output.read_text().splitlines()) == 25
    assert cli("compare", ids[0]).status == 2
    assert cli("compare", file, "--model", "a").status == 2
