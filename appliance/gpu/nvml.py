"""NVIDIA GPUs through NVML; the only importer of pynvml.

NVML lists GPUs in PCI bus order, which is the order that `CUDA_DEVICE_ORDER=PCI_BUS_ID` gives to
CUDA, so an index here is an index there.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from appliance.errors import DeviceError
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind, DeviceSource

T = TypeVar("T")


class NvmlReader:
    """All NVIDIA GPUs of this machine."""

    source = DeviceSource.NVML

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    @classmethod
    def open(cls) -> "NvmlReader | None":
        """A reader, or None where there is no driver or no GPU. Raises DeviceError."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value in {
                pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
                pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            }:
                return None
            raise DeviceError(
                f"The NVIDIA driver does not answer: {error}.",
                hint="Run `nvidia-smi`; after a driver upgrade a reboot is needed.",
            ) from error
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        if not handles:
            pynvml.nvmlShutdown()
            return None
        return cls(handles)

    def read(self) -> list[Reading]:
        """All GPUs; one that does not answer is listed with its problem."""
        return [self._read_one(index, handle) for index, handle in enumerate(self._handles)]

    def close(self) -> None:
        """Release NVML."""
        _optional(pynvml.nvmlShutdown)

    def _read_one(self, index: int, handle: Any) -> Reading:
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            name = str(pynvml.nvmlDeviceGetName(handle))
        except pynvml.NVMLError as error:
            return Reading(
                id=f"gpu-{index}",
                index=index,
                name="GPU",
                kind=DeviceKind.GPU,
                total_bytes=0,
                available_bytes=0,
                problem=f"does not answer: {error}",
            )
        utilization = _optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        power = _optional(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        return Reading(
            id=uuid,
            index=index,
            name=name,
            kind=DeviceKind.GPU,
            total_bytes=int(memory.total),
            available_bytes=int(memory.free),
            used_by_pid=_processes(handle),
            utilization_ratio=None if utilization is None else utilization / 100,
            temperature_c=_optional(
                lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
            ),
            power_w=None if power is None else power / 1000,
        )


def _processes(handle: Any) -> dict[int, int]:
    """Device memory of each compute process; a process without a figure counts 0."""
    running = _optional(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {process.pid: int(process.usedGpuMemory or 0) for process in running}


def _optional(query: Callable[[], T]) -> T | None:
    """A reading that not every GPU or container gives."""
    try:
        return query()
    except pynvml.NVMLError:
        return None
