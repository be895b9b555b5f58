"""What a source says about a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.gpu.condition import HEALTHY, Condition
from appliance.protocol.devices import DeviceKind, Link


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a source says about one device now. All sizes are bytes."""

    id: str
    index: int
    """Stays with the id while the server runs."""
    name: str
    kind: DeviceKind
    total_bytes: int
    available_bytes: int | None
    """What could be allocated now; None where only the ledger knows (simulated)."""
    used_by_pid: Mapping[int, int] = field(default_factory=dict)
    """Device memory by process, where the driver tells."""
    process_names: Mapping[int, str] = field(default_factory=dict)
    """Of the processes above that can be seen from here."""
    utilization_ratio: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    condition: Condition = HEALTHY
    links: Mapping[str, Link] = field(default_factory=dict)
    """To the other devices, by id."""
    numa_node: int | None = None
    visible_as: str | None = None
    """Its name in CUDA_VISIBLE_DEVICES, where that is not its index."""
    is_partition: bool = False
    """A MIG instance: no process can use two of them."""

    @property
    def problem(self) -> str | None:
        """Why nothing may be placed here, or None."""
        return self.condition.text if self.condition.is_quarantined else None
