"""Devices: what slots are placed on."""

from enum import IntEnum, StrEnum

from appliance.protocol.base import Wire


class DeviceKind(StrEnum):
    """Where the memory of a device is."""

    GPU = "gpu"
    CPU = "cpu"
    SIMULATED = "simulated"


class DeviceHealth(StrEnum):
    """What a device is good for now."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It serves and takes engines, but its owner should know something."""
    QUARANTINED = "quarantined"
    """Nothing is placed on it; engines that run on it go on."""


class DeviceCause(StrEnum):
    """Why a device is not healthy; docs/devices.md explains each."""

    DRIVER_MISSING = "driver_missing"
    """No NVML library, or the kernel module is not loaded."""
    DRIVER_MISMATCH = "driver_mismatch"
    """Kernel module and libraries are of different versions."""
    NVML_LOST = "nvml_lost"
    """NVML fails for all GPUs."""
    NVML_HANGS = "nvml_hangs"
    """A question to the driver has not come back."""
    NO_PERMISSION = "no_permission"
    GPU_LOST = "gpu_lost"
    """It fell off the bus, or is no longer listed."""
    GPU_FAILS = "gpu_fails"
    """It answers with an error that has no name here."""
    RESET_NEEDED = "reset_needed"
    REBOOT_NEEDED = "reboot_needed"
    XID = "xid"
    """The driver reported an error of this GPU or of a program on it."""
    MEMORY_ERRORS = "memory_errors"
    """Uncorrectable ECC errors, or rows that could not be replaced."""
    MIG_EMPTY = "mig_empty"
    """MIG is on, and no instance exists."""
    MEMORY_HELD = "memory_held"
    """The memory of an engine that has ended did not come back."""


class Link(IntEnum):
    """How two devices reach each other; the smaller, the faster."""

    NVLINK = 0
    PCIE_SWITCH = 1
    SAME_NUMA = 2
    """Through one processor."""
    SYSTEM = 3
    """Through the connection between processors."""


class DeviceProcess(Wire, frozen=True, kw_only=True):
    """A process of somebody else that holds memory of a device."""

    pid: int
    name: str
    """Of its program; empty where it cannot be seen from here, as in a container."""
    bytes: int


class Occupant(Wire, frozen=True, kw_only=True):
    """What one engine holds on one device, in bytes.

    `reserved_bytes` is what the ledger counts; `used_bytes` is what was measured last, 0 before
    the first sample. `weights_bytes` and `kv_cache_bytes` are the parts of the plan.
    """

    model: str
    engine_id: str
    reserved_bytes: int
    used_bytes: int = 0
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    rank: int = 0


class Device(Wire, frozen=True, kw_only=True):
    """One device at one moment. Readings that the source cannot give are None."""

    id: str
    index: int
    name: str
    kind: DeviceKind
    total_bytes: int
    used_bytes: int
    """All that is in use, by whom ever."""
    other_bytes: int
    """In use by processes that are not ours."""
    reserved_bytes: int
    """Promised to our engines by the ledger."""
    launcher_bytes: int = 0
    """Held by warm launchers, which serve all engines."""
    free_bytes: int
    """What a new engine may take: the smaller of ledger and reading."""
    freeing_bytes: int = 0
    """Held for an engine that has ended; nothing starts there before they are back."""
    occupants: list[Occupant] = []
    processes: list[DeviceProcess] = []
    """Of others, largest first, where the driver tells."""
    utilization_ratio: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    health: DeviceHealth = DeviceHealth.HEALTHY
    cause: DeviceCause | None = None
    """None: it is healthy."""
    problem: str | None = None
    """Why nothing is placed here, or None."""
    note: str | None = None
    """What is wrong with a device that is used nevertheless."""
    remedy: str | None = None
    """What its owner can do."""
    links: dict[str, Link] = {}
    """To the other devices, by id."""
    numa_node: int | None = None


class DeviceSource(StrEnum):
    """Which of the three sources the inventory reads."""

    NVML = "nvml"
    CPU = "cpu"
    SIMULATED = "simulated"
