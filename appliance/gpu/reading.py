"""What a source says about a device."""

from dataclasses import dataclass, field

from appliance.protocol.devices import DeviceKind


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a source says about one device now. All sizes are bytes."""

    id: str
    index: int
    name: str
    kind: DeviceKind
    total_bytes: int
    available_bytes: int | None
    """What could be allocated now; None where only the ledger knows (simulated)."""
    used_by_pid: dict[int, int] = field(default_factory=dict)
    """Device memory by process, where the driver tells."""
    utilization_ratio: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    problem: str | None = None
