from datetime import UTC, datetime

from appliance.protocol.devices import Device, DeviceCause, DeviceHealth, DeviceKind
from appliance.slots.device_alerts import device_alerts

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def device(
    health: DeviceHealth = DeviceHealth.HEALTHY,
    cause: DeviceCause | None = None,
    text: str | None = None,
) -> Device:
    is_quarantined = health is DeviceHealth.QUARANTINED
    return Device(
        id="GPU-1",
        index=1,
        name="A GPU",
        kind=DeviceKind.GPU,
        total_bytes=10,
        used_bytes=0,
        other_bytes=0,
        reserved_bytes=0,
        free_bytes=10,
        health=health,
        cause=cause,
        problem=text if is_quarantined else None,
        note=None if is_quarantined else text,
        remedy="Reboot." if cause else None,
    )


LOST = device(DeviceHealth.QUARANTINED, DeviceCause.GPU_LOST, "it fell off the bus")


def test_a_new_fault_is_told_once_with_its_remedy() -> None:
    (alert,) = device_alerts([device()], [LOST], NOW)
    assert alert.message == "Device 1 (A GPU): it fell off the bus."
    assert (alert.severity, alert.hint, alert.device_id) == ("error", "Reboot.", "GPU-1")
    assert device_alerts([LOST], [LOST], NOW) == []


def test_a_fault_that_is_there_at_the_start_is_told() -> None:
    assert len(device_alerts([], [LOST], NOW)) == 1


def test_a_degraded_device_is_a_warning() -> None:
    noted = device(DeviceHealth.DEGRADED, DeviceCause.XID, "Xid 31")
    (alert,) = device_alerts([device()], [noted], NOW)
    assert (alert.severity, alert.message) == ("warning", "Device 1 (A GPU): Xid 31.")


def test_another_cause_is_news_and_a_recovery_is_not() -> None:
    noted = device(DeviceHealth.DEGRADED, DeviceCause.XID, "Xid 31")
    assert len(device_alerts([LOST], [noted], NOW)) == 1
    assert device_alerts([LOST], [device()], NOW) == []
