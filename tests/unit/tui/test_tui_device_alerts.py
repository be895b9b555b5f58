"""Alerts about devices end with what they are about."""

from datetime import UTC, datetime

import pytest

from appliance.protocol.devices import Device, DeviceHealth, DeviceKind
from appliance.protocol.events import AlertRaised, DevicesSampled
from appliance.protocol.system import Alert, Totals
from tui.state.view import View, apply


def device(health: DeviceHealth) -> Device:
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
    )


@pytest.mark.parametrize(
    ("health", "left"), [(DeviceHealth.HEALTHY, 0), (DeviceHealth.QUARANTINED, 1)]
)
def test_alert_goes_once_its_device_is_healthy(health: DeviceHealth, left: int) -> None:
    alert = Alert(
        id="device:GPU-1",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        severity="error",
        message="Device 1 is lost.",
        device_id="GPU-1",
    )
    view = apply(View(), AlertRaised(alert=alert))
    view = apply(view, DevicesSampled(devices=[device(health)], totals=Totals()))
    assert len(view.alerts) == left
