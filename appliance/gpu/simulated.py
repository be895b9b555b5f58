"""Simulated GPUs: sizes from the configuration; their engines really run on the CPU."""

from collections.abc import Sequence

from appliance.config.settings import SimulatedDevice
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind, DeviceSource, Link


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
                links={
                    f"sim-{other}": _link(device, peer)
                    for other, peer in enumerate(devices)
                    if other != index
                },
                numa_node=device.numa_node,
            )
            for index, device in enumerate(devices)
        ]

    def read(self) -> list[Reading]:
        """The configured devices."""
        return list(self._readings)

    def close(self) -> None:
        """Nothing is held."""


def _link(one: SimulatedDevice, other: SimulatedDevice) -> Link:
    if one.nvlink and one.nvlink == other.nvlink:
        return Link.NVLINK
    is_near = one.numa_node is not None and one.numa_node == other.numa_node
    return Link.SAME_NUMA if is_near else Link.SYSTEM
