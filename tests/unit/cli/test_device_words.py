"""What `appliance devices` and `appliance doctor` say."""

import msgspec
import pytest

from appliance.cli.devices import print_devices
from appliance.cli.doctor import of_devices
from appliance.protocol.devices import (
    Device,
    DeviceCause,
    DeviceHealth,
    DeviceKind,
    DeviceProcess,
    Link,
)

GIB = 1024**3


def gpu(index: int) -> Device:
    return Device(
        id=f"GPU-{index}",
        index=index,
        name="A GPU",
        kind=DeviceKind.GPU,
        total_bytes=24 * GIB,
        used_bytes=GIB,
        other_bytes=0,
        reserved_bytes=0,
        free_bytes=20 * GIB,
    )


def said(capsys: pytest.CaptureFixture[str], *devices: Device) -> list[str]:
    print_devices(devices)
    return capsys.readouterr().out.splitlines()


def test_healthy_devices_need_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    heading, first, second = said(capsys, gpu(0), gpu(1))
    assert heading.split() == ["DEVICE", "NAME", "HEALTH", "USED", "SIZE", "FREE", "MODELS"]
    assert " ".join(first.split()) == "0 A GPU healthy 1.0 GiB 24.0 GiB 20.0 GiB -"
    assert second.startswith("1 ")


def test_faults_come_with_their_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    lost = msgspec.structs.replace(
        gpu(1),
        health=DeviceHealth.QUARANTINED,
        cause=DeviceCause.GPU_LOST,
        problem="it fell off the bus",
        remedy="Reboot.",
    )
    assert said(capsys, gpu(0), lost)[3:] == [
        "device 1 is quarantined: it fell off the bus",
        "    Reboot.",
    ]
    good, bad = of_devices([gpu(0), lost])
    assert (good.severity, good.message) == ("ok", "A GPU, 20.0 GiB free of 24.0 GiB")
    assert (bad.severity, bad.message, bad.remedy) == (
        "error", "quarantined: it fell off the bus", "Reboot.",
    )  # fmt: skip


def test_a_note_is_a_warning() -> None:
    noted = msgspec.structs.replace(
        gpu(0), health=DeviceHealth.DEGRADED, cause=DeviceCause.XID, note="Xid 31", remedy="Wait."
    )
    (finding,) = of_devices([noted])
    assert (finding.severity, finding.message) == ("warning", "degraded: Xid 31")


def test_those_who_hold_memory_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    shared = msgspec.structs.replace(
        gpu(0),
        freeing_bytes=2 * GIB,
        processes=[
            DeviceProcess(pid=7, name="python3\x1b[2J", bytes=3 * GIB),
            DeviceProcess(pid=8, name="", bytes=GIB),
        ],
    )
    assert said(capsys, shared)[2:] == [
        "device 0: waits for 2.0 GiB of an engine that has ended",
        "device 0: 3.0 GiB held by process 7 (python3)",
        "device 0: 1.0 GiB held by process 8 (not visible from here)",
    ]


def test_close_pairs_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    links = [{}, {0: Link.NVLINK}, {0: Link.SYSTEM, 1: Link.PCIE_SWITCH}]
    devices = [
        msgspec.structs.replace(
            gpu(index),
            links={
                f"GPU-{peer}": links[max(index, peer)][min(index, peer)]
                for peer in range(3)
                if peer != index
            },
        )
        for index in range(3)
    ]
    assert said(capsys, *devices)[4:] == ["linked by NVLink: 0-1", "linked by PCIe switch: 1-2"]
