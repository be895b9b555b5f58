"""Devices: what slots are placed on."""

from enum import StrEnum

from appliance.protocol.base import Wire


class DeviceKind(StrEnum):
    """Where the memory of a device is."""

    GPU = "gpu"
    CPU = "cpu"
    SIMULATED = "simulated"


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
    occupants: list[Occupant] = []
    utilization_ratio: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    problem: str | None = None
    """Why nothing is placed here (lost, quarantined), or None."""


class DeviceSource(StrEnum):
    """Which of the three sources the inventory reads."""

    NVML = "nvml"
    CPU = "cpu"
    SIMULATED = "simulated"
