"""Where models may go and how they are split: settings, plans, and engines that follow them."""

import json
from pathlib import Path

from tests.stub.conftest import MIB, MakeModel, MakeServer
from tests.support.command import appliance
from tests.support.server import ServerProcess

TWO_DEVICES = '[[devices.simulated]]\nmemory = "2500MiB"\n' * 2


def places(server: ServerProcess, model: str) -> list[int]:
    return [share["device_index"] for share in server.model(model)["placement"]["shares"]]


def with_long_context(directory: Path) -> Path:
    """Its KV cache is too large for one device, and halves with each way that it is split."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config |= {"max_position_embeddings": 32768, "num_hidden_layers": 100}
    file.write_text(json.dumps(config))
    return directory


def test_model_that_is_too_large_for_one_device_takes_two_if_it_may(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(TWO_DEVICES)
    server.add_model("big", with_long_context(make_model("big")))
    refusal = json.loads(appliance(server, "load", "big", "--dry-run", "--json").stdout)
    assert refusal["verdict"] == "refuse"
    commands = {each["command"] for each in refusal["suggestions"]}
    assert "appliance set big --tp 2" in commands
    assert any(command.startswith("appliance set big --context") for command in commands)
    assert [each["device_index"] for each in refusal["have"]] == [0, 1]
    told = appliance(server, "load", "big", "--dry-run")
    assert told.returncode == 1
    assert "would fit" in told.stdout
    assert appliance(server, "set", "big", "--tp", "auto").returncode == 0
    plan = json.loads(appliance(server, "load", "big", "--dry-run", "--json").stdout)
    assert plan["verdict"] == "place"
    loaded = appliance(server, "load", "big")
    assert loaded.returncode == 0, loaded.stderr
    assert places(server, "big") == [0, 1]
    assert server.model("big")["settings"]["tp_size"] == "auto"
    assert "tensor parallel" in appliance(server, "show", "big").stdout
    assert appliance(server, "load", "big", "--dry-run").stdout.startswith("big is loaded")


def test_each_suggestion_that_is_typed_makes_it_fit(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(TWO_DEVICES)
    server.add_model("mine", make_model("mine"), memory_bytes=2000 * MIB, pinned=True)
    assert appliance(server, "load", "mine").returncode == 0
    server.add_model("m", make_model("m"), memory_bytes=2000 * MIB, avoid_devices=["1"])
    refusal = json.loads(appliance(server, "load", "m", "--dry-run", "--json").stdout)
    assert [each["model"] for each in refusal["holders"]] == ["mine"]
    commands = [each["command"] for each in refusal["suggestions"]]
    assert commands == ["appliance set m --avoid none", "appliance stop mine"]
    for command in commands:
        assert appliance(server, *command.split()[1:]).returncode == 0
        plan = json.loads(appliance(server, "load", "m", "--dry-run", "--json").stdout)
        assert plan["verdict"] == "place"
        assert appliance(server, "set", "m", "--avoid", "1").returncode == 0


def test_exclusive_model_gets_a_device_for_itself(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(TWO_DEVICES)
    for name in ("a", "b"):
        server.add_model(name, make_model(name), memory_bytes=300 * MIB)
    server.add_model("alone", make_model("alone"), memory_bytes=300 * MIB, exclusive=True)
    assert appliance(server, "load", "a").returncode == 0
    assert appliance(server, "load", "alone").returncode == 0
    assert appliance(server, "load", "b").returncode == 0
    assert places(server, "alone") != places(server, "a") == places(server, "b")
    assert "shared with no other model" in appliance(server, "show", "alone").stdout


def test_device_cannot_be_used_and_avoided(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server(TWO_DEVICES)
    server.add_model("m", make_model("m"), memory_bytes=300 * MIB, devices=["0"])
    answer = server.admin("PATCH", "/models/m", {"avoid_devices": ["0"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "avoid_devices"
    assert server.admin("PATCH", "/models/m", {"tp_size": "many"}).status_code == 400
