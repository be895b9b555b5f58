"""A whole server on fake GPUs: faults are named, other GPUs serve on, all recover unaided."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nvml.conftest import MakeGpuServer
from tests.nvml.fake_nvml import FakeNvml, mib
from tests.stub.conftest import MakeModel
from tests.support.recorder import Recorder
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

UNKNOWN = 999
SEEN, HIDDEN, OF_THE_HOST = "hidden 0", "hidden 1", "shift 10000000"
"""How the driver tells pids: as they are here, not at all, as they are outside a container."""


def device(server: ServerProcess, index: int) -> dict[str, Any]:
    devices = server.admin("GET", "/devices").json()
    return next(each for each in devices if each["index"] == index)


def wait_for_health(server: ServerProcess, index: int, health: str) -> dict[str, Any]:
    wait_until(lambda: device(server, index)["health"] == health, 20, f"{index} {health}")
    return device(server, index)


def alerts(server: ServerProcess) -> list[str]:
    return [each["message"] for each in server.state()["alerts"] if each["device_id"]]


def add(
    server: ServerProcess, make_model: MakeModel, nvml: FakeNvml, name: str, size: int, gpu: int
) -> None:
    """A model that may only use one GPU and takes so many MiB of it."""
    memory = {"processes": str(nvml.processes), "mib": size}
    server.add_model(name, make_model(name, gpu_memory=memory), devices=[str(gpu)])


def started(nvml: FakeNvml, gpu: int) -> int:
    """The process of the engine on a GPU, as the driver knows it."""
    (entry,) = nvml.processes.glob(f"{gpu}.*")
    return int(entry.suffix[1:])


def ask_to_load(server: ServerProcess, model: str) -> None:
    assert server.admin("POST", f"/models/{model}/load").status_code == 202


def unload(server: ServerProcess, model: str) -> None:
    assert server.admin("POST", f"/models/{model}/unload").status_code == 202


def is_ready(server: ServerProcess, model: str) -> bool:
    return bool(server.model(model)["state"] == "ready")


def appliance(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", *arguments],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_engines_show_with_their_memory(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    server = gpu_server("")
    add(server, make_model, nvml, "a", 6000, 1)
    server.load("a")
    wait_until(lambda: device(server, 1)["occupants"][0]["used_bytes"] == mib(6000), 10)
    seen = device(server, 1)
    assert seen["processes"] == []
    assert seen["other_bytes"] == mib(500)
    assert seen["used_bytes"] == mib(6500)
    assert device(server, 0)["occupants"] == []


def test_other_gpus_serve_while_one_is_lost(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    server = gpu_server("")
    for gpu, name in enumerate("abc"):
        add(server, make_model, nvml, name, 2000, gpu)
    server.load("a")
    nvml.gpus[1].keys = {"lost": 1}
    nvml.write()
    lost = wait_for_health(server, 1, "quarantined")
    assert lost["cause"] == "gpu_lost"
    assert "fell off the bus" in lost["problem"]
    wait_until(lambda: any("Device 1" in message for message in alerts(server)), 10, "alert")
    ask_to_load(server, "b")
    server.load("c")
    assert is_ready(server, "a")
    wait_until(lambda: "device 1" in (server.model("b")["waits_for"] or ""), 10)
    nvml.gpus[1].keys = {}
    nvml.write()
    wait_for_health(server, 1, "healthy")
    wait_until(lambda: is_ready(server, "b"), 20, "b ready")
    wait_until(lambda: alerts(server) == [], 10, "no alert")


def test_a_server_starts_on_a_broken_driver_and_recovers(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    nvml.write("driver 2.0")
    server = gpu_server("")
    seen = wait_for_health(server, 0, "quarantined")
    assert (seen["cause"], seen["kind"]) == ("driver_mismatch", "gpu")
    assert "reboot" in seen["remedy"]
    add(server, make_model, nvml, "a", 1000, 0)
    ask_to_load(server, "a")
    wait_until(lambda: "device 0" in (server.model("a")["waits_for"] or ""), 10)
    told = appliance(server, "doctor")
    assert told.returncode == 1
    assert "different versions" in told.stdout
    nvml.write()
    wait_until(lambda: is_ready(server, "a"), 30, "a ready")
    assert [each["id"] for each in server.state()["devices"]] == ["GPU-0", "GPU-1", "GPU-2"]
    assert appliance(server, "doctor").returncode == 0


def test_nvml_that_is_lost_stops_no_engine_and_hides_no_gpu(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    server = gpu_server("")
    add(server, make_model, nvml, "a", 2000, 0)
    add(server, make_model, nvml, "b", 2000, 1)
    server.load("a")
    nvml.write(f"fail * {UNKNOWN}")
    for index in range(3):
        assert wait_for_health(server, index, "quarantined")["cause"] == "nvml_lost"
    ask_to_load(server, "b")
    assert is_ready(server, "a")
    unload(server, "a")
    wait_until(lambda: server.model("a")["state"] == "stopped", 10)
    assert not is_ready(server, "b")
    nvml.write()
    wait_until(lambda: is_ready(server, "b"), 30, "b ready")
    wait_for_health(server, 0, "healthy")


@pytest.mark.parametrize("call", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_hangs_keeps_no_server_from_starting_or_stopping(
    gpu_server: MakeGpuServer, nvml: FakeNvml, call: str
) -> None:
    nvml.write(f"hang {call}")
    server = gpu_server("answer_timeout = 0.5\n")
    assert wait_for_health(server, 0, "quarantined")["cause"] == "nvml_hangs"
    nvml.write()
    wait_until(lambda: len(server.state()["devices"]) == 3, 20, "three GPUs")
    wait_for_health(server, 2, "healthy")
    nvml.write("hang nvmlDeviceGetMemoryInfo")
    assert wait_for_health(server, 2, "quarantined")["cause"] == "nvml_hangs"
    assert server.stop() == 0


def test_a_server_that_stops_waits_for_no_memory(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    nvml.write("keeps -1")
    server = gpu_server("freeing_timeout = 1000\n")
    add(server, make_model, nvml, "a", 4000, 1)
    server.load("a")
    assert server.stop() == 0


@pytest.mark.parametrize("pids", [SEEN, HIDDEN, OF_THE_HOST])
def test_memory_that_comes_back_slowly_is_waited_for(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml, pids: str
) -> None:
    nvml.write("keeps -1", pids)
    server = gpu_server("")
    events = Recorder(server)
    add(server, make_model, nvml, "a", 23500, 1)
    add(server, make_model, nvml, "b", 2000, 1)
    server.load("a")
    wait_until(lambda: device(server, 1)["free_bytes"] < mib(400), 10)
    unload(server, "a")
    ask_to_load(server, "b")
    # Where the driver names no process, no more is waited for than the engine was promised.
    least = device(server, 1)["reserved_bytes"] // 2 if pids != SEEN else mib(22000)
    wait_until(lambda: device(server, 1)["freeing_bytes"] > least, 10, "freeing")
    assert device(server, 1)["health"] == "healthy"
    assert "a has given its memory back" in (server.model("b")["waits_for"] or "")
    nvml.write("keeps 0", pids)
    wait_until(lambda: is_ready(server, "b"), 20, "b ready")
    assert device(server, 1)["freeing_bytes"] == 0
    assert events.of("alert") == []


def test_nothing_starts_beside_memory_that_is_not_back(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    nvml.write("keeps -1")
    server = gpu_server("")
    add(server, make_model, nvml, "a", 4000, 1)
    add(server, make_model, nvml, "b", 2000, 1)
    add(server, make_model, nvml, "c", 2000, 2)
    server.load("a")
    wait_until(lambda: device(server, 1)["free_bytes"] < mib(20500), 10)
    unload(server, "a")
    ask_to_load(server, "b")
    wait_until(lambda: "has its memory back" in (server.model("b")["waits_for"] or ""), 10)
    server.load("c")
    assert server.model("b")["state"] != "ready"
    nvml.write("keeps 0")
    wait_until(lambda: is_ready(server, "b"), 20, "b ready")


def test_memory_is_looked_at_once_a_lost_gpu_is_back(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    nvml.write("keeps -1")
    server = gpu_server("")
    add(server, make_model, nvml, "a", 4000, 1)
    server.load("a")
    wait_until(lambda: device(server, 1)["free_bytes"] < mib(20500), 10)
    nvml.gpus[1].keys = {"lost": 1}
    nvml.write("keeps -1")
    wait_for_health(server, 1, "quarantined")
    unload(server, "a")
    wait_until(lambda: server.model("a")["state"] == "stopped", 10, "a stopped")
    nvml.gpus[1].keys = {}
    nvml.write("keeps -1")
    wait_until(lambda: device(server, 1)["cause"] == "memory_held", 20, "memory held")
    nvml.write("keeps 0")
    wait_for_health(server, 1, "healthy")


@pytest.mark.parametrize("pids", [SEEN, HIDDEN, OF_THE_HOST])
def test_memory_that_does_not_come_back_quarantines_its_gpu_only(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml, pids: str
) -> None:
    nvml.write("keeps -1", pids)
    server = gpu_server("freeing_timeout = 1\n")
    add(server, make_model, nvml, "a", 4000, 1)
    add(server, make_model, nvml, "b", 2000, 1)
    add(server, make_model, nvml, "c", 2000, 2)
    server.load("a")
    wait_until(lambda: device(server, 1)["free_bytes"] < mib(20500), 10)
    pid = started(nvml, 1)
    unload(server, "a")
    held = wait_for_health(server, 1, "quarantined")
    assert held["cause"] == "memory_held"
    assert (f"process {pid} (" if pids == SEEN else "the driver does not name") in held["problem"]
    ask_to_load(server, "b")
    server.load("c")
    assert not is_ready(server, "b")
    wait_until(lambda: any("Device 1" in message for message in alerts(server)), 10, "alert")
    nvml.write("keeps 0", pids)
    wait_for_health(server, 1, "healthy")
    wait_until(lambda: is_ready(server, "b"), 20, "b ready")
    wait_until(lambda: alerts(server) == [], 10, "no alert")


def test_foreign_memory_is_seen_and_respected(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    server = gpu_server("")
    us, name = os.getpid(), Path("/proc/self/comm").read_text().strip()
    nvml.gpus[0].processes = {us: 10000}
    nvml.write()
    wait_until(lambda: device(server, 0)["processes"], 10)
    assert device(server, 0)["processes"] == [{"pid": us, "name": name, "bytes": mib(10000)}]
    free = device(server, 0)["free_bytes"]
    nvml.gpus[0].processes = {us: 23900}
    nvml.write()
    wait_until(lambda: device(server, 0)["free_bytes"] < free - mib(13000), 10)
    add(server, make_model, nvml, "a", 2000, 0)
    plan = server.admin("POST", "/models/a/plan").json()
    assert plan["verdict"] == "refuse"
    told = appliance(server, "devices").stdout
    assert f"held by process {us} ({name})" in told
    nvml.gpus[0].processes = {}
    nvml.write()
    wait_until(lambda: device(server, 0)["free_bytes"] > free, 10)
    server.load("a")


def test_an_xid_is_told_and_a_gpu_that_needs_a_reset_takes_no_model(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    server = gpu_server("")
    nvml.write("xid 1 1 79", "xid 2 2 31")
    seen = wait_for_health(server, 1, "quarantined")
    assert (seen["cause"], "Xid 79" in seen["problem"]) == ("xid", True)
    noted = wait_for_health(server, 2, "degraded")
    assert (noted["problem"], "Xid 31" in noted["note"]) == (None, True)
    add(server, make_model, nvml, "b", 1000, 2)
    server.load("b")
    listed = json.loads(appliance(server, "devices", "--json").stdout)
    assert [each["health"] for each in listed] == ["healthy", "quarantined", "degraded"]
    assert "device 1 is quarantined: Xid 79" in appliance(server, "ps").stdout
    assert "warning  device 2: degraded: Xid 31" in appliance(server, "doctor").stdout


def test_an_engine_gets_its_mig_instance_by_its_uuid(
    gpu_server: MakeGpuServer, make_model: MakeModel, nvml: FakeNvml
) -> None:
    nvml.gpus[0].keys = {"mig": 1}
    nvml.gpus[0].instances = [("MIG-a", 10240, 20), ("MIG-b", 10240, 20)]
    nvml.write()
    server = gpu_server("")
    server.add_model("a", make_model("a"), devices=["MIG-b"])
    server.load("a")
    (pid,) = server.engine_pids()
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=MIG-b" in environ
