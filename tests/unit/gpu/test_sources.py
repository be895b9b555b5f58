"""Which source the settings and the machine lead to (NVML itself: tests/nvml)."""

import pynvml
import pytest

from appliance.config.settings import DeviceSettings, SimulatedDevice
from appliance.errors import ConfigError
from appliance.gpu.inventory import open_reader
from appliance.protocol.devices import DeviceCause, DeviceHealth, DeviceSource, Link

GIB = 1024**3


def test_a_machine_without_the_library_uses_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert open_reader(DeviceSettings()).source is DeviceSource.CPU
    reader = open_reader(DeviceSettings(source=DeviceSource.NVML))
    reading = reader.read()[0]
    assert reading.condition.health is DeviceHealth.QUARANTINED
    assert reading.condition.cause is DeviceCause.DRIVER_MISSING
    assert "not loaded" in (reading.problem or "")
    reader.close()


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


def test_simulated_devices_are_linked_as_the_configuration_says() -> None:
    listed = [
        SimulatedDevice(memory="1GiB", nvlink="a", numa_node=0),
        SimulatedDevice(memory="1GiB", nvlink="a", numa_node=1),
        SimulatedDevice(memory="1GiB", numa_node=1),
    ]
    first, second, third = open_reader(DeviceSettings(simulated=listed)).read()
    assert first.links == {"sim-1": Link.NVLINK, "sim-2": Link.SYSTEM}
    assert second.links == {"sim-0": Link.NVLINK, "sim-2": Link.SAME_NUMA}
    assert (first.numa_node, third.numa_node) == (0, 1)
