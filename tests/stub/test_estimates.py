"""What a model needs, over the API and by the command."""

import json

import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer
from tests.stub.test_cli import appliance
from tests.support.server import ServerProcess

CONFIG = '[[devices.simulated]]\nmemory = "4GiB"\n[[devices.simulated]]\nmemory = "1GiB"\n'
PARTS = ("weights", "kv_cache", "activations", "graphs", "context")


@pytest.fixture
def server(make_server: MakeServer, make_model: MakeModel) -> ServerProcess:
    server = make_server(CONFIG)
    server.add_model("m", make_model("m"))
    server.add_model("org/estimate", make_model("other"), memory_bytes=100 * MIB)
    return server


def test_report_of_a_known_model(server: ServerProcess) -> None:
    told = server.admin("GET", "/models/m/estimate").json()
    assert told["model"] == "m"
    assert told["rank"]["total_bytes"] == server.model("m")["need_bytes"]
    assert told["rank"]["total_bytes"] == sum(told["rank"][f"{part}_bytes"] for part in PARTS)
    assert told["rank"]["basis"] == "estimated"
    assert [each["fits"] for each in told["devices"]] == [True, False]


def test_report_follows_the_query(server: ServerProcess) -> None:
    def ask(query: str) -> dict[str, object]:
        return dict(server.admin("GET", f"/models/m/estimate?{query}").json())

    assert ask("context_length=64")["context_length"] == 64
    assert ask("tp_size=2")["tp_size"] == 2
    assert "attention heads" in str(ask("tp_size=3")["problem"])
    assert ask("device_bytes=8589934592")["device_kind"] == "gpu"
    devices = ask("device=1")["devices"]
    assert isinstance(devices, list)
    assert [each["device_index"] for each in devices] == [1]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/none/estimate", 404),
        ("/models/m/estimate?device=9", 400),
        ("/models/m/estimate?tp_size=0", 400),
    ],
)
def test_what_cannot_be_asked(server: ServerProcess, path: str, status: int) -> None:
    answer = server.admin("GET", path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_model_whose_name_ends_like_the_report_is_still_a_model(server: ServerProcess) -> None:
    assert server.model("org/estimate")["settings"]["memory_bytes"] == 100 * MIB
    told = server.admin("GET", "/models/org/estimate/estimate").json()
    assert told["rank"]["basis"] == "chosen"


def test_need_is_shown_with_where_it_comes_from(server: ServerProcess) -> None:
    assert server.model("m")["need"]["basis"] == "estimated"
    assert server.admin("POST", "/models/m/plan").json()["need"]["basis"] == "estimated"
    shown = appliance(server, "show", "m")
    assert "(estimated, within" in shown.stdout
    assert "(as you have set it)" in appliance(server, "show", "org/estimate").stdout


def test_split_that_is_left_open_is_the_one_that_fits(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("open", make_model("open"), tp_size="auto")
    told = server.admin("GET", "/models/open/estimate").json()
    assert (told["tp_size"], told["fits"]) == (1, True)
    assert told["rank"]["total_bytes"] == server.model("open")["need_bytes"]


def test_command(server: ServerProcess) -> None:
    told = appliance(server, "estimate", "m")
    assert told.returncode == 0, told.stderr
    assert "once it is free" not in told.stdout
    assert "yes" in told.stdout
    as_json = appliance(server, "estimate", "m", "--ctx", "64", "--gpu", "0", "--json")
    assert json.loads(as_json.stdout)["context_length"] == 64
    refused = appliance(server, "estimate", "m", "--gpu", "1")
    assert refused.returncode == 1, refused.stdout


def test_directory_is_held_against_the_devices_of_the_server(
    server: ServerProcess, make_model: MakeModel
) -> None:
    told = appliance(server, "estimate", str(make_model("unknown")), "--json")
    assert told.returncode == 0, told.stderr
    assert [each["fits"] for each in json.loads(told.stdout)["devices"]] == [True, False]
