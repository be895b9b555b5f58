"""One session with NVIDIA's driver through NVML; the only importer of pynvml.

NVML lists GPUs in PCI bus order, which is the order that `CUDA_DEVICE_ORDER=PCI_BUS_ID` gives to
CUDA, so an index here is an index there.
"""

import _ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from appliance.protocol.devices import Link

T = TypeVar("T")

_LIBRARY = "libnvidia-ml.so.1"


class Fault(Enum):
    """What NVML's error codes mean to us."""

    LIBRARY_MISSING = "library missing"
    DRIVER_MISSING = "driver missing"
    MISMATCH = "mismatch"
    NO_PERMISSION = "no permission"
    LOST = "lost"
    RESET = "reset"
    UNSUPPORTED = "unsupported"
    OTHER = "other"


_FAULTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: Fault.LIBRARY_MISSING,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: Fault.DRIVER_MISSING,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: Fault.MISMATCH,
    pynvml.NVML_ERROR_NO_PERMISSION: Fault.NO_PERMISSION,
    pynvml.NVML_ERROR_GPU_IS_LOST: Fault.LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: Fault.LOST,
    pynvml.NVML_ERROR_NOT_FOUND: Fault.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: Fault.RESET,
    pynvml.NVML_ERROR_NOT_SUPPORTED: Fault.UNSUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: Fault.UNSUPPORTED,
}


class NvmlError(Exception):
    """A question that NVML did not answer."""

    def __init__(self, error: pynvml.NVMLError) -> None:
        super().__init__(str(error))
        self.fault = _FAULTS.get(getattr(error, "value", None), Fault.OTHER)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or one MIG instance of it. `handle` is its own, `whole` that of the GPU."""

    uuid: str
    name: str
    index: int
    """Of the GPU, in the order of the bus."""
    bus: str
    handle: Any
    whole: Any
    whole_uuid: str
    has_mig: bool = False
    """MIG is on; without `is_instance`: and it has no instances."""

    @property
    def is_instance(self) -> bool:
        """Whether it is a MIG instance."""
        return self.uuid != self.whole_uuid


@dataclass(frozen=True)
class Listing:
    """What the driver lists."""

    gpus: tuple[Gpu, ...]
    """GPUs and instances."""
    broken: tuple[tuple[int, NvmlError], ...] = ()
    """Index of GPUs that do not even tell who they are, and what they answered."""
    denied: int = 0
    """GPUs that are somebody else's: this process may not open them."""


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """What changes. All sizes are bytes; None is what this GPU does not tell."""

    total_bytes: int | None
    """None: its memory is the machine's."""
    free_bytes: int | None
    used_by_pid: dict[int, int] = field(default_factory=dict)
    utilization_ratio: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    recovery_action: int | None = None
    """One of NVML_GPU_RECOVERY_ACTION_*; 0: none."""
    uncorrected_errors: int = 0
    is_remap_pending: bool = False
    has_remap_failed: bool = False


NO_ACTION = pynvml.NVML_GPU_RECOVERY_ACTION_NONE
REBOOT_ACTIONS = frozenset(
    {pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT, pynvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT}
)


class NvmlSession:
    """From nvmlInit to nvmlShutdown. All calls raise NvmlError unless they say otherwise."""

    def __init__(self) -> None:
        try:
            _ask(pynvml.nvmlInit)
        except NvmlError as error:
            if error.fault is Fault.MISMATCH:
                _unload_library()
            raise
        self._loaded = _loaded_library()
        self._events: Any = None
        self._watched: set[str] = set()

    def close(self) -> None:
        """End the session; a library that was replaced is not used by the next one."""
        is_replaced = self.is_library_replaced()
        _optional(lambda: pynvml.nvmlEventSetFree(self._events) if self._events else None)
        _optional(pynvml.nvmlShutdown)
        if is_replaced:
            _unload_library()

    def is_library_replaced(self) -> bool:
        """Whether another version was installed since; never raises."""
        if self._loaded is None:
            return False
        installed, inode = self._loaded
        return _inode(installed) not in {inode, None}

    def listing(self) -> Listing:
        """All GPUs and instances; one that fails does not keep the others away."""
        found: list[Gpu] = []
        broken: list[tuple[int, NvmlError]] = []
        denied = 0
        for index in range(_ask(pynvml.nvmlDeviceGetCount)):
            try:
                found += self._gpu(index)
            except NvmlError as error:
                if error.fault is Fault.NO_PERMISSION:
                    denied += 1
                else:
                    broken.append((index, error))
        return Listing(tuple(found), tuple(broken), denied)

    def sample(self, gpu: Gpu) -> GpuSample:
        """Memory and state now."""
        try:
            memory = _ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu.handle))
        except NvmlError as error:
            if error.fault is not Fault.UNSUPPORTED:
                raise
            memory = None
        utilization = _optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu)
        power = _optional(lambda: pynvml.nvmlDeviceGetPowerUsage(gpu.whole))
        remapped = _optional(lambda: pynvml.nvmlDeviceGetRemappedRows(gpu.whole))
        return GpuSample(
            total_bytes=None if memory is None else int(memory.total),
            free_bytes=None if memory is None else int(memory.free),
            used_by_pid=_processes(gpu.handle),
            utilization_ratio=None if utilization is None else utilization / 100,
            temperature_c=_optional(
                lambda: float(
                    pynvml.nvmlDeviceGetTemperature(gpu.whole, pynvml.NVML_TEMPERATURE_GPU)
                )
            ),
            power_w=None if power is None else power / 1000,
            recovery_action=_recovery_action(gpu.whole),
            uncorrected_errors=_optional(lambda: _uncorrected_errors(gpu.whole)) or 0,
            is_remap_pending=bool(remapped and remapped[2]),
            has_remap_failed=bool(remapped and remapped[3]),
        )

    def link(self, one: Gpu, other: Gpu) -> Link:
        """How two GPUs reach each other; the slowest where NVML does not say. Never raises."""
        status = _optional(
            lambda: pynvml.nvmlDeviceGetP2PStatus(
                one.whole, other.whole, pynvml.NVML_P2P_CAPS_INDEX_NVLINK
            )
        )
        if status == pynvml.NVML_P2P_STATUS_OK:
            return Link.NVLINK
        level = _optional(
            lambda: pynvml.nvmlDeviceGetTopologyCommonAncestor(one.whole, other.whole)
        )
        if level is None or level >= pynvml.NVML_TOPOLOGY_SYSTEM:
            return Link.SYSTEM
        return Link.SAME_NUMA if level >= pynvml.NVML_TOPOLOGY_HOSTBRIDGE else Link.PCIE_SWITCH

    def numa_node(self, gpu: Gpu) -> int | None:
        """As NVML tells it; None if it does not. Never raises."""
        node = _optional(lambda: pynvml.nvmlDeviceGetNumaNodeId(gpu.whole))
        return node if node is None or node >= 0 else None

    def xids(self) -> Iterator[tuple[str, int]]:
        """UUID of the GPU and code of each Xid since the last call; never raises."""
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                    yield str(pynvml.nvmlDeviceGetUUID(event.device)), int(event.eventData)
            except pynvml.NVMLError:
                return

    def watch(self, gpus: Sequence[Gpu]) -> None:
        """Report the Xids of these from now on; a GPU that cannot do that is left out."""
        if self._events is None:
            self._events = _optional(pynvml.nvmlEventSetCreate)
        for gpu in gpus:
            if self._events is not None and gpu.whole_uuid not in self._watched:
                self._watched.add(gpu.whole_uuid)
                _optional(lambda gpu=gpu: self._register(gpu))  # type: ignore[misc]

    def _register(self, gpu: Gpu) -> None:
        pynvml.nvmlDeviceRegisterEvents(
            gpu.whole, pynvml.nvmlEventTypeXidCriticalError, self._events
        )

    def _gpu(self, index: int) -> list[Gpu]:
        whole = _ask(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
        uuid = str(_ask(lambda: pynvml.nvmlDeviceGetUUID(whole)))
        bus = _optional(lambda: pynvml.nvmlDeviceGetPciInfo(whole).busId) or ""
        bus = bus.decode() if isinstance(bus, bytes) else str(bus)
        mode = _optional(lambda: pynvml.nvmlDeviceGetMigMode(whole)[0])
        if mode == pynvml.NVML_DEVICE_MIG_ENABLE:
            instances = [
                Gpu(str(pynvml.nvmlDeviceGetUUID(handle)), _name(handle), index, bus, handle, whole,
                    uuid, has_mig=True)
                for handle in _instances(whole)
            ]  # fmt: skip
            if instances:
                return instances
        has_mig = mode == pynvml.NVML_DEVICE_MIG_ENABLE
        return [Gpu(uuid, _name(whole), index, bus, whole, whole, uuid, has_mig=has_mig)]


def _unload_library() -> None:
    """Forget the loaded library: the loader would hand out the old one under its name for ever."""
    library = pynvml.nvmlLib
    if library is not None:
        pynvml.nvmlLib = None
        pynvml._nvmlGetFunctionPointer_cache.clear()
        _ctypes.dlclose(library._handle)


def _ask(question: Callable[[], T]) -> T:
    try:
        return question()
    except pynvml.NVMLError as error:
        raise NvmlError(error) from error


def _optional(question: Callable[[], T]) -> T | None:
    """What not every GPU, driver or container tells."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def _name(handle: Any) -> str:
    return str(_optional(lambda: pynvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU")


def _instances(whole: Any) -> list[Any]:
    most = _optional(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(whole)) or 0
    found = (
        _optional(lambda index=index: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index))  # type: ignore[misc]
        for index in range(most)
    )
    return [handle for handle in found if handle is not None]


def _processes(handle: Any) -> dict[int, int]:
    """Device memory of each process; a process without a figure counts 0."""
    used: dict[int, int] = {}
    for query, older in _PROCESS_QUERIES:
        for process in _first_known(query, older, handle) or []:
            # A process that computes and draws is told twice, with all its memory each time.
            used[process.pid] = max(used.get(process.pid, 0), int(process.usedGpuMemory or 0))
    return used


# The second ones are for drivers before branch 510.
_PROCESS_QUERIES = (
    (
        pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
        pynvml.nvmlDeviceGetComputeRunningProcesses_v2,
    ),
    (
        pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
    ),
)


def _first_known(query: Callable[[Any], Any], older: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return _ask(lambda: query(handle))
    except NvmlError as error:
        return _optional(lambda: older(handle)) if error.fault is Fault.UNSUPPORTED else None


def _recovery_action(whole: Any) -> int | None:
    """What the driver wants done with the GPU (branch 570 and later)."""
    wanted = [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
    values = _optional(lambda: pynvml.nvmlDeviceGetFieldValues(whole, wanted))
    if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _uncorrected_errors(whole: Any) -> int:
    return int(
        pynvml.nvmlDeviceGetTotalEccErrors(
            whole, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
    )


def _loaded_library() -> tuple[Path, int] | None:
    """Where the loader found the library, and which file is there now (proc_pid_maps(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "libnvidia-ml.so" in fields[5]:
            installed = Path(fields[5]).parent / _LIBRARY
            inode = _inode(installed)
            return None if inode is None else (installed, inode)
    return None


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None
