"""The real NVML binding on a fake library: what faults are called, and that they go again."""

import os
from pathlib import Path
from typing import Any

import pytest

from appliance.protocol.devices import Link
from tests.nvml.fake_nvml import FakeGpu, FakeNvml, ReaderProcess, build_library, mib

UNKNOWN, UNKNOWN_FUNCTION, NO_PERMISSION, NOT_LOADED, RESET = 999, 13, 4, 9, 16


def causes(readings: list[dict[str, Any]]) -> list[str | None]:
    return [reading["condition"]["cause"] for reading in readings]


def test_three_gpus_with_processes_and_changing_memory(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    us = os.getpid()
    nvml.gpus[1].processes = {us: 1000}
    nvml.gpus[1].keys = {"util": 42, "temp": 55, "power": 120}
    nvml.write()
    first, second, third = reader.read()
    assert [each["id"] for each in (first, second, third)] == ["GPU-0", "GPU-1", "GPU-2"]
    assert second["used_by_pid"] == {str(us): mib(1000)}
    assert second["process_names"][str(us)] == Path(f"/proc/{us}/comm").read_text().strip()
    assert second["available_bytes"] == mib(24576 - 500 - 1000)
    assert (second["utilization_ratio"], second["temperature_c"]) == (0.42, 55.0)
    assert (second["power_w"], first["power_w"]) == (120.0, None)
    assert [each["visible_as"] for each in (first, second, third)] == ["0", "1", "2"]
    nvml.gpus[1].processes = {us: 3000}
    nvml.write()
    assert reader.read()[1]["available_bytes"] == mib(24576 - 500 - 3000)


def test_a_process_that_cannot_be_seen_from_here_has_no_name(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.gpus[0].processes = {4194304 + 17: 100}  # beyond the largest pid of Linux
    nvml.write("keeps -1")
    (reading, *_) = reader.read()
    assert list(reading["used_by_pid"].values()) == [mib(100)]
    assert reading["process_names"] == {}


def test_a_driver_that_lacks_a_question_is_asked_the_others(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.write(f"fail nvmlDeviceGetComputeRunningProcesses_v3 {UNKNOWN_FUNCTION}")
    readings = reader.read()
    assert causes(readings) == [None, None, None]
    assert readings[0]["used_by_pid"] == {}


def test_a_lost_gpu_is_quarantined_while_the_others_go_on(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    reader.read()
    nvml.gpus[1].keys = {"lost": 1}
    nvml.write()
    readings = reader.read(1)
    assert causes(readings) == [None, "gpu_lost", None]
    assert readings[1]["total_bytes"] == mib(24576)
    assert "fell off the bus" in readings[1]["problem"]
    # Indices may mean other GPUs to CUDA now.
    assert readings[2]["visible_as"] == "GPU-2"
    nvml.gpus[1].keys = {}
    nvml.write()
    readings = reader.read(60)
    assert causes(readings) == [None, None, None]
    assert readings[2]["visible_as"] == "2"


def test_a_gpu_that_is_no_longer_listed_keeps_its_place(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    reader.read()
    gone = nvml.gpus.pop(1)
    nvml.write()
    readings = reader.read(60)
    assert [(each["id"], each["index"]) for each in readings] == [
        ("GPU-0", 0), ("GPU-1", 1), ("GPU-2", 2),
    ]  # fmt: skip
    assert causes(readings) == [None, "gpu_lost", None]
    nvml.gpus.insert(1, gone)
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_a_gpu_that_answers_with_an_error_is_asked_again(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    reader.read()
    nvml.write(f"fail nvmlDeviceGetMemoryInfo {UNKNOWN} 2")
    assert causes(reader.read(1)) == [None, None, "gpu_fails"]
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


@pytest.mark.parametrize(
    ("code", "cause"),
    [(RESET, "reset_needed"), (NO_PERMISSION, "no_permission")],
)
def test_errors_of_one_gpu_have_their_names(
    nvml: FakeNvml, reader: ReaderProcess, code: int, cause: str
) -> None:
    nvml.write(f"fail nvmlDeviceGetMemoryInfo {code} 0")
    readings = reader.read()
    assert causes(readings) == [cause, None, None]
    assert readings[0]["condition"]["remedy"]
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_a_gpu_that_is_broken_from_the_start_is_listed_and_keeps_no_other_away(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.write(f"fail nvmlDeviceGetUUID {UNKNOWN} 1")
    readings = reader.read()
    assert [each["id"] for each in readings] == ["GPU-0", "gpu-1", "GPU-2"]
    assert causes(readings) == [None, "gpu_fails", None]
    assert causes(reader.read(60)) == [None, "gpu_fails", None]
    nvml.write()
    readings = reader.read(60)
    assert [each["id"] for each in readings] == ["GPU-0", "GPU-1", "GPU-2"]
    assert causes(readings) == [None, None, None]


def test_gpus_of_others_are_left_out_and_ours_named_by_uuid(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.write(f"fail nvmlDeviceGetUUID {NO_PERMISSION} 0")
    readings = reader.read()
    assert [(each["id"], each["visible_as"]) for each in readings] == [
        ("GPU-1", "GPU-1"), ("GPU-2", "GPU-2"),
    ]  # fmt: skip


def test_gpus_of_which_none_may_be_opened_are_no_machine_without_gpus(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.write(f"fail nvmlDeviceGetUUID {NO_PERMISSION}")
    assert reader.opens()
    assert causes(reader.read()) == ["no_permission"]
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_a_driver_that_lists_no_gpu_any_more_is_asked_again(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    gpus, nvml.gpus = nvml.gpus, []
    nvml.write()
    assert causes(reader.read()) == ["gpu_lost"]
    nvml.gpus = gpus
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_nvml_that_is_lost_leaves_all_gpus_listed_and_comes_back(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    before = reader.read()
    nvml.write(f"fail * {UNKNOWN}")
    readings = reader.read(1)
    assert causes(readings) == ["nvml_lost"] * 3
    assert [each["total_bytes"] for each in readings] == [each["total_bytes"] for each in before]
    assert causes(reader.read(100)) == ["nvml_lost"] * 3
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_nvml_whose_session_is_dead_is_opened_anew(nvml: FakeNvml, reader: ReaderProcess) -> None:
    reader.read()
    nvml.write("session 1")
    assert causes(reader.read(1)) == ["nvml_lost"] * 3
    assert causes(reader.read(60)) == [None, None, None]


def test_a_driver_that_fails_is_asked_less_and_less_often(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    reader.read()
    nvml.write(f"fail * {UNKNOWN}")
    reader.read(1)
    for _ in range(8):
        reader.read(100)
    nvml.write()
    assert causes(reader.read(1)) == ["nvml_lost"] * 3
    assert causes(reader.read(30)) == [None, None, None]


def test_a_driver_that_is_broken_at_first_is_listed_by_its_gpus_on_the_bus(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.add_pci_gpu("0000:01:00.0")
    nvml.add_pci_gpu("0000:02:00.0")
    nvml.write("driver 2.0")
    readings = reader.read()
    assert [each["id"] for each in readings] == ["pci-0000:01:00.0", "pci-0000:02:00.0"]
    assert causes(readings) == ["driver_mismatch"] * 2
    assert "reboot" in readings[0]["condition"]["remedy"]
    nvml.write()
    assert [each["id"] for each in reader.read(60)] == ["GPU-0", "GPU-1", "GPU-2"]


def test_a_driver_upgrade_is_noticed_and_its_new_library_loaded(
    nvml: FakeNvml, tmp_path: Path
) -> None:
    nvml.library = build_library(tmp_path / "installed", "1.0")
    reader = ReaderProcess(nvml)
    assert causes(reader.read()) == [None, None, None]
    nvml.write("driver 1.0")
    build_library(nvml.library, "2.0")
    assert causes(reader.read(60)) == ["driver_mismatch"] * 3
    nvml.write("driver 2.0")
    assert causes(reader.read(60)) == [None, None, None]
    reader.end()


def test_a_module_that_is_not_loaded_is_broken_only_where_a_gpu_is(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.write(f"fail nvmlInitWithFlags {NOT_LOADED}")
    assert not reader.opens()
    nvml.add_pci_gpu("0000:01:00.0")
    assert reader.opens() is not Path("/proc/driver/nvidia/version").exists()
    assert causes(reader.read(60)) == ["driver_missing"]


@pytest.mark.parametrize("code", [UNKNOWN, NO_PERMISSION])
def test_a_broken_driver_is_not_taken_for_a_machine_without_gpus(
    nvml: FakeNvml, reader: ReaderProcess, code: int
) -> None:
    nvml.write(f"fail nvmlInitWithFlags {code}")
    assert reader.opens()


def test_a_driver_without_gpus_is_a_machine_without_gpus(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.gpus = []
    nvml.write()
    assert not reader.opens()


def test_mig_instances_are_devices_of_their_own(nvml: FakeNvml, reader: ReaderProcess) -> None:
    nvml.gpus[1].keys = {"mig": 1}
    nvml.gpus[1].instances = [("MIG-a", 10240, 20), ("MIG-b", 4864, 4000)]
    nvml.write()
    readings = {each["id"]: each for each in reader.read()}
    assert sorted(readings) == ["GPU-0", "GPU-2", "MIG-a", "MIG-b"]
    assert readings["MIG-b"]["total_bytes"] == mib(4864)
    assert readings["MIG-b"]["available_bytes"] == mib(864)
    assert readings["MIG-b"]["is_partition"]
    assert readings["MIG-a"]["visible_as"] == "MIG-a"
    # CUDA counts differently beside a divided GPU.
    assert readings["GPU-2"]["visible_as"] == "GPU-2"
    assert [each["index"] for each in readings.values()] == [0, 2, 3, 4]
    nvml.gpus[1].instances.pop()
    nvml.write()
    assert sorted(each["id"] for each in reader.read(60)) == ["GPU-0", "GPU-2", "MIG-a"]


def test_instances_are_lost_with_their_gpu(nvml: FakeNvml, reader: ReaderProcess) -> None:
    nvml.gpus[1].keys = {"mig": 1}
    nvml.gpus[1].instances = [("MIG-a", 10240, 20)]
    nvml.write()
    reader.read()
    nvml.gpus[1].keys = {"mig": 1, "lost": 1}
    nvml.write()
    readings = {each["id"]: each["condition"]["cause"] for each in reader.read(60)}
    assert readings == {"GPU-0": None, "GPU-2": None, "MIG-a": "gpu_lost"}
    nvml.gpus[1].keys = {"mig": 1}
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_a_gpu_that_may_not_be_opened_any_more_is_named_so(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    reader.read()
    nvml.write(f"fail nvmlDeviceGetUUID {NO_PERMISSION} 1")
    assert causes(reader.read(60)) == [None, "no_permission", None]
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_mig_without_instances_is_named_and_goes_with_the_mode(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.gpus[1].keys = {"mig": 1}
    nvml.write(f"fail nvmlDeviceGetMemoryInfo {NO_PERMISSION} 1")
    assert causes(reader.read()) == [None, "mig_empty", None]
    nvml.write()
    readings = reader.read()
    assert causes(readings) == [None, "mig_empty", None]
    assert "nvidia-smi" in readings[1]["condition"]["remedy"]
    nvml.gpus[1].keys = {}
    nvml.write()
    assert causes(reader.read(60)) == [None, None, None]


def test_an_xid_that_needs_a_reset_lasts_until_the_gpu_was_gone(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    reader.read()
    nvml.write("xid 1 1 119")
    readings = reader.read(1)
    assert causes(readings) == [None, "xid", None]
    assert "Xid 119" in readings[1]["problem"]
    assert readings[1]["condition"]["health"] == "quarantined"
    assert causes(reader.read(10_000)) == [None, "xid", None]
    nvml.gpus[1].keys = {"lost": 1}
    nvml.write("xid 1 1 119")
    reader.read(1)
    nvml.gpus[1].keys = {}
    nvml.write("xid 1 1 119")
    assert causes(reader.read(60)) == [None, None, None]


def test_an_xid_of_a_program_is_noted_for_a_while(nvml: FakeNvml, reader: ReaderProcess) -> None:
    reader.read()
    nvml.write("xid 1 0 31", "xid 2 0 31", "xid 3 2 45")
    readings = reader.read(1)
    assert causes(readings) == ["xid", None, None]
    assert readings[0]["condition"]["health"] == "degraded"
    assert readings[0]["problem"] is None
    assert "2 times" in readings[0]["condition"]["text"]
    assert causes(reader.read(700)) == [None, None, None]


def test_what_the_driver_wants_done_decides_where_it_tells(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.gpus[0].keys = {"recovery": 0}
    nvml.write()
    reader.read()
    nvml.gpus[0].keys = {"recovery": 1}
    nvml.write("xid 1 0 95")
    assert causes(reader.read(1)) == ["reset_needed", None, None]
    nvml.gpus[0].keys = {"recovery": 2}
    nvml.write("xid 1 0 95")
    assert causes(reader.read(1)) == ["reboot_needed", None, None]
    nvml.gpus[0].keys = {"recovery": 0}
    nvml.write("xid 1 0 95")
    (first, *_) = reader.read(1)
    assert (first["condition"]["cause"], first["condition"]["health"]) == ("xid", "degraded")
    assert causes(reader.read(700)) == [None, None, None]


def test_memory_errors_degrade_and_rows_that_cannot_be_replaced_quarantine(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.gpus[0].keys = {"ecc": 2, "pending": 1}
    nvml.gpus[1].keys = {"failure": 1}
    nvml.write()
    first, second, third = reader.read()
    assert first["condition"]["health"] == "degraded"
    assert "2 uncorrectable memory errors" in first["condition"]["text"]
    assert second["condition"]["health"] == "quarantined"
    assert (first["condition"]["cause"], second["condition"]["cause"]) == ("memory_errors",) * 2
    assert third["condition"]["cause"] is None
    nvml.gpus[0].keys = nvml.gpus[1].keys = {}
    nvml.write()
    assert causes(reader.read(1)) == [None, None, None]


def test_topology_is_told_to_both_ends(nvml: FakeNvml, reader: ReaderProcess) -> None:
    nvml.gpus.append(FakeGpu("GPU-3"))
    nvml.gpus[2].keys = {"numa": 1}
    nvml.write("nvlink 0 1", "topology 0 2 40", "topology 1 2 10", "topology 2 3 20")
    first, second, third, fourth = reader.read()
    assert first["links"] == {"GPU-1": Link.NVLINK, "GPU-2": Link.SAME_NUMA, "GPU-3": Link.SYSTEM}
    assert second["links"]["GPU-2"] == third["links"]["GPU-1"] == Link.PCIE_SWITCH
    assert fourth["links"]["GPU-2"] == Link.PCIE_SWITCH
    assert (first["numa_node"], third["numa_node"]) == (0, 1)


def test_a_gpu_that_shares_the_machines_memory_has_its_size(
    nvml: FakeNvml, reader: ReaderProcess
) -> None:
    nvml.gpus = [FakeGpu("GPU-0", keys={"nomem": 1})]
    nvml.write()
    (only,) = reader.read()
    assert only["condition"]["cause"] is None
    assert only["total_bytes"] > 0
    assert 0 < only["available_bytes"] <= only["total_bytes"]
