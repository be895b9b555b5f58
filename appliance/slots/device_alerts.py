"""What an owner is told when the health of a device changes. Pure."""

from collections.abc import Sequence
from datetime import datetime

from appliance.protocol.devices import Device, DeviceHealth
from appliance.protocol.system import Alert


def device_alerts(before: Sequence[Device], after: Sequence[Device], now: datetime) -> list[Alert]:
    """An alert for each device that something else is wrong with than before."""
    known = {device.id: (device.health, device.cause) for device in before}
    return [
        Alert(
            id=f"device:{device.id}",
            at=now,
            severity="error" if device.health is DeviceHealth.QUARANTINED else "warning",
            message=f"Device {device.index} ({device.name}): {device.problem or device.note}.",
            hint=device.remedy or "",
            device_id=device.id,
        )
        for device in after
        if device.health is not DeviceHealth.HEALTHY
        and known.get(device.id) != (device.health, device.cause)
    ]
