"""The devices of this machine through one interface, whatever their source."""

from typing import Protocol

from appliance.config.settings import DeviceSettings
from appliance.errors import ConfigError
from appliance.gpu.cpu import CpuReader
from appliance.gpu.nvml_reader import NvmlReader
from appliance.gpu.reading import Reading
from appliance.gpu.simulated import SimulatedReader
from appliance.protocol.devices import DeviceSource


class DeviceReader(Protocol):
    """A source of devices. Calls may block: use a thread."""

    source: DeviceSource

    def read(self) -> list[Reading]:
        """All devices, in a fixed order. Raises DeviceError.

        Never an empty list for a failure: what does not answer is listed with its condition.
        """
        ...

    def close(self) -> None:
        """Give back what the source holds."""
        ...


def open_reader(settings: DeviceSettings) -> DeviceReader:
    """The source that the settings ask for, or the best one there is.

    Raises ConfigError. A machine whose driver is broken is not taken for one without GPUs: its
    GPUs are listed with their problem until the driver works.
    """
    source = settings.source
    if source is None and settings.simulated:
        source = DeviceSource.SIMULATED
    if source is DeviceSource.SIMULATED:
        if not settings.simulated:
            raise ConfigError(
                "devices.source is simulated, but no [[devices.simulated]] is listed.",
                hint='Add for example [[devices.simulated]] with memory = "8GiB".',
            )
        return SimulatedReader(settings.simulated)
    if source is DeviceSource.CPU:
        return CpuReader(settings.cpu_memory_bytes)
    if source is DeviceSource.NVML:
        return NvmlReader()
    return NvmlReader.open() or CpuReader(settings.cpu_memory_bytes)
