"""`appliance pull` and `pulls`, as people type them."""

import json
import signal
import subprocess
import sys

from tests.stub.conftest import Serve
from tests.support.checkpoints import checkpoint
from tests.support.command import appliance
from tests.support.hub import Fault, LocalHub
from tests.support.pulls import REPO, act, known_models, pull, until, view
from tests.support.wait import wait_until

MIB = 1 << 20
WEIGHTS = "model.safetensors"


def test_pull_fetches_and_adds(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    server = serve()
    done = appliance(server, "pull", f"https://huggingface.co/{REPO}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Pulled {REPO}: 2 MiB in ")
    assert "listing" in done.stderr
    assert known_models(server) == [REPO]


def test_json_is_a_line_for_each_change(serve: Serve, hub: LocalHub) -> None:
    commit = hub.commit(REPO, checkpoint(2 * MIB), branch="v1")
    server = serve()
    done = appliance(server, "pull", f"{REPO}@v1", "--name", "one", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 1
    assert lines[-1]["state"] == "completed"
    assert lines[-1]["commit"] == commit
    assert known_models(server) == ["one"]


def test_what_went_wrong_is_said_with_what_to_do(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    hub.gate(REPO, "hf_a")
    server = serve()
    done = appliance(server, "pull", REPO)
    assert done.returncode == 1
    assert f"{REPO} is gated" in done.stderr
    assert f"{hub.url}/{REPO}" in done.stderr
    assert "is gated" in appliance(server, "pulls").stdout
    done = appliance(server, "pull", REPO, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["problem"]["cause"] == "gated"
    assert appliance(server, "pull", "nonsense").returncode == 1


def test_ctrl_c_ends_the_display_and_not_the_pull(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB))
    server = serve()
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", "pull", REPO],
        env=server.env, stderr=subprocess.PIPE, text=True,
    ) as display:  # fmt: skip
        hub.wait_until_held()
        assert display.stderr is not None
        assert display.stderr.readline()
        display.send_signal(signal.SIGINT)
        said = display.stderr.read()
        assert display.wait(20) == 130
    assert "The server goes on with it." in said
    [found] = json.loads(appliance(server, "pulls", "--json").stdout)
    assert found["state"] == "running"
    hub.go_on()
    again = appliance(server, "pull", REPO)
    assert again.returncode == 0, again.stderr


def test_a_display_outlives_a_restart_of_the_server(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB))
    server = serve()
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", "pull", REPO, "--json"],
        env=server.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as display:  # fmt: skip
        hub.wait_until_held()
        assert display.stdout is not None
        assert display.stdout.readline()
        server.kill()
        serve()
        last = json.loads(display.stdout.read().splitlines()[-1])
        assert display.wait(20) == 0
    assert last["state"] == "completed"


def test_a_pull_is_paused_resumed_and_cancelled_by_its_repository(
    serve: Serve, hub: LocalHub
) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB))
    server = serve()
    pull_id = pull(server)
    hub.wait_until_held()
    listed = appliance(server, "pulls").stdout
    assert pull_id in listed
    assert "fetching" in listed
    assert "paused" in appliance(server, "pulls", "pause", REPO).stdout
    assert view(server, pull_id)["state"] == "paused"
    hub.spoil(WEIGHTS, Fault(hold_at=MIB + MIB // 2))
    resumed = appliance(server, "pulls", "resume", pull_id, "--json")
    assert json.loads(resumed.stdout)["state"] in {"queued", "running"}
    hub.wait_until_held()
    assert "cancelled" in appliance(server, "pulls", "cancel", pull_id).stdout
    assert appliance(server, "pulls", "cancel", "acme/none").returncode == 1
    assert appliance(server, "pulls", "pause").returncode == 2


def test_a_pull_that_somebody_pauses_ends_the_display(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB))
    server = serve()
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", "pull", REPO],
        env=server.env, stderr=subprocess.PIPE, text=True,
    ) as display:  # fmt: skip
        hub.wait_until_held()
        wait_until(lambda: server.state()["pulls"])
        [found] = server.state()["pulls"]
        act(server, found["id"], "pause")
        assert display.stderr is not None
        assert "is paused" in display.stderr.read()
        assert display.wait(20) == 1


def test_no_wait_returns_at_once(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    server = serve()
    done = appliance(server, "pull", REPO, "--no-wait", "--json")
    assert done.returncode == 0
    until(server, json.loads(done.stdout)["id"], "completed")
