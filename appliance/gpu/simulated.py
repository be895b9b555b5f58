"""Simulated GPUs: sizes from the configuration; their engines really run on the CPU."""

from collections.abc import Sequence

from appliance.config.settings import SimulatedDevice
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind, DeviceSource


class SimulatedReader:
    """Devices that hold what our engines' processes hold in RAM."""

    source = DeviceSource.SIMULATED

    def __init__(self, devices: Sequence[SimulatedDevice]) -> None:
        self._readings = [
            Reading(
                id=f"sim-{index}",
                index=index,
                name=device.name,
                kind=DeviceKind.SIMULATED,
                total_bytes=device.memory_bytes,
                available_bytes=None,
            )
            for index, device in enumerate(devices)
        ]

    def read(self) -> list[Reading]:
        """The configured devices."""
        return list(self._readings)

    def close(self) -> None:
        """Nothing is held."""
