"""`appliance sleep` and `wake`, as people type them."""

import json

import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer
from tests.support.command import appliance
from tests.support.server import ServerProcess

CONFIG = '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nsleep_timeout = "3s"\n'


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    for name, fault in (("m", ""), ("bad", "garbage")):
        path = make_model(name, kv_bytes=32 * MIB, load_s=0.0, sleep_fault=fault)
        server.add_model(name, path, environment="stub-sleep", kv_cache_bytes=32 * MIB)
    return server


def test_a_model_is_put_to_sleep_and_woken(server: ServerProcess) -> None:
    refused = appliance(server, "sleep", "m")
    assert refused.returncode == 1
    assert "Load it first" in refused.stderr
    assert appliance(server, "load", "m").returncode == 0
    slept = appliance(server, "sleep", "m", "--level", "2")
    assert slept.returncode == 0, slept.stderr
    assert "m is asleep at level 2" in slept.stdout
    assert "asleep (level 2)" in appliance(server, "ls").stdout
    woken = appliance(server, "--json", "wake", "m")
    assert json.loads(woken.stdout)["state"] == "ready"
    shown = appliance(server, "show", "m").stdout
    assert "level 2 works: " in shown
    again = appliance(server, "wake", "m")
    assert again.returncode == 1
    assert "does not sleep" in again.stderr


def test_a_wake_that_fails_is_told_with_its_cause(server: ServerProcess) -> None:
    appliance(server, "load", "bad")
    assert appliance(server, "sleep", "bad").returncode == 0
    # The wish to have it loaded outlives the engine that did not wake.
    woken = appliance(server, "wake", "bad")
    assert woken.returncode == 0, woken.stderr
    assert "level 1 does not work: after it woke" in appliance(server, "show", "bad").stdout


def test_sleep_is_a_setting(server: ServerProcess) -> None:
    for text, value in (("off", "off"), ("2", 2), ("auto", "auto")):
        assert appliance(server, "set", "m", "--sleep", text).returncode == 0
        assert server.model("m")["settings"]["sleep"] == value
    assert appliance(server, "set", "m", "--sleep", "3").returncode == 2
