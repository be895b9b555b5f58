"""NVML's answers and failures, with the library's functions replaced (no GPU is needed)."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from appliance.config.settings import DeviceSettings, SimulatedDevice
from appliance.errors import ConfigError, DeviceError
from appliance.gpu.inventory import open_reader
from appliance.gpu.nvml import NvmlReader
from appliance.protocol.devices import DeviceKind, DeviceSource

GIB = 1024**3


def failing(code: int) -> Any:
    def fail(*_: object) -> None:
        raise pynvml.NVMLError(code)

    return fail


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=24 * GIB, free=20 * GIB),
        "nvmlDeviceGetUUID": lambda index: f"GPU-{index}",
        "nvmlDeviceGetName": lambda _: "A GPU",
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=42),
        "nvmlDeviceGetPowerUsage": failing(pynvml.NVML_ERROR_NOT_SUPPORTED),
        "nvmlDeviceGetTemperature": lambda *_: 55,
        "nvmlDeviceGetComputeRunningProcesses": lambda index: [
            SimpleNamespace(pid=100 + index, usedGpuMemory=GIB),
            SimpleNamespace(pid=200, usedGpuMemory=None),
        ],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_read_with_what_they_tell() -> None:
    reader = open_reader(DeviceSettings())
    first, second = reader.read()
    assert reader.source is DeviceSource.NVML
    assert (first.id, second.id) == ("GPU-0", "GPU-1")
    assert (first.total_bytes, first.available_bytes) == (24 * GIB, 20 * GIB)
    assert first.used_by_pid == {100: GIB, 200: 0}
    assert (first.utilization_ratio, first.temperature_c, first.power_w) == (0.42, 55.0, None)
    assert first.kind is DeviceKind.GPU
    reader.close()


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_does_not_answer_is_listed_with_its_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def memory(index: int) -> SimpleNamespace:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(total=24 * GIB, free=20 * GIB)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory)
    reader = NvmlReader.open()
    assert reader is not None
    good, lost = reader.read()
    assert good.problem is None
    assert lost.problem is not None
    assert "does not answer" in lost.problem
    assert lost.available_bytes == 0


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_a_machine_without_a_driver_uses_its_cpu(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", failing(code))
    assert open_reader(DeviceSettings()).source is DeviceSource.CPU
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        open_reader(DeviceSettings(source=DeviceSource.NVML))


def test_a_broken_driver_is_not_taken_for_a_machine_without_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    monkeypatch.setattr(pynvml, "nvmlInit", failing(code))
    with pytest.raises(DeviceError, match="does not answer"):
        open_reader(DeviceSettings())


def test_simulated_devices_have_the_sizes_of_the_configuration() -> None:
    listed = [SimulatedDevice(memory="4GiB"), SimulatedDevice(memory="2GiB", name="Small")]
    reader = open_reader(DeviceSettings(simulated=listed))
    first, second = reader.read()
    assert (first.total_bytes, second.total_bytes) == (4 * GIB, 2 * GIB)
    assert (first.id, second.name) == ("sim-0", "Small")
    with pytest.raises(ConfigError, match=r"no .*devices\.simulated"):
        open_reader(DeviceSettings(source=DeviceSource.SIMULATED))


def test_the_cpu_offers_what_the_settings_say_and_the_machine_has() -> None:
    (reading,) = open_reader(DeviceSettings(source=DeviceSource.CPU, cpu_memory="1GiB")).read()
    assert reading.total_bytes == GIB
    assert reading.available_bytes is not None
    (share,) = open_reader(DeviceSettings(source=DeviceSource.CPU)).read()
    assert share.total_bytes > GIB
