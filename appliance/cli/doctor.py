"""doctor: what is wrong here, and what can be done; works without a server too."""

import argparse
from collections.abc import Sequence

import msgspec

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.devices import label
from appliance.cli.models import Subparsers
from appliance.cli.output import print_json, safe
from appliance.config.load import load_settings
from appliance.config.paths import find_paths
from appliance.errors import ApplianceError
from appliance.gpu.inventory import open_reader
from appliance.gpu.reading import Reading
from appliance.protocol.devices import Device, DeviceHealth
from appliance.protocol.system import Snapshot
from appliance.units import format_size

_MARKS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    about: str
    severity: str
    """`ok`, `warning` or `error`."""
    message: str
    remedy: str = ""


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser("doctor", help="say what is wrong here and what can be done")
    parser.set_defaults(func=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    try:
        findings = of_server(ServerClient(args.url).get("/admin/v1/state", Snapshot))
    except ServerError as error:
        findings = [
            Finding(about="server", severity="error", message=error.message, remedy=error.hint)
        ]
        if not args.url:
            findings += _of_machine()
    if args.json:
        print_json(findings)
    else:
        for each in findings:
            print(safe(f"{_MARKS[each.severity]}  {each.about}: {each.message}"))
            if each.remedy and each.severity != "ok":
                print(safe(f"           {each.remedy}"))
    return 1 if any(each.severity == "error" for each in findings) else 0


def of_server(state: Snapshot) -> list[Finding]:
    """What a server says about itself."""
    version = state.server.vllm_version
    findings = [
        Finding(
            about="server",
            severity="ok",
            message=f"{state.server.version} at {state.server.listen}",
        ),
        Finding(about="vLLM", severity="ok", message=version)
        if version
        else Finding(
            about="vLLM",
            severity="error",
            message="no engine environment is installed",
            remedy="`appliance engine install` makes one.",
        ),
        *of_devices(state.devices),
    ]
    findings += [
        Finding(about="model", severity=alert.severity, message=alert.message, remedy=alert.hint)
        for alert in state.alerts
        if alert.device_id is None
    ]
    return findings


def of_devices(devices: Sequence[Device]) -> list[Finding]:
    """The health of each device."""
    return [
        _finding(
            label(device),
            device.health,
            device.problem or device.note or "",
            device.remedy or "",
            f"{device.name}, {format_size(device.free_bytes)} free"
            f" of {format_size(device.total_bytes)}",
        )
        for device in devices
    ]


def _of_machine() -> list[Finding]:
    """The devices as this process sees them, where no server runs."""
    try:
        reader = open_reader(load_settings(find_paths().config_file).devices)
        try:
            readings = reader.read()
        finally:
            reader.close()
    except ApplianceError as error:
        return [
            Finding(about="devices", severity="error", message=error.message, remedy=error.hint)
        ]
    return [_of_reading(reading) for reading in readings]


def _of_reading(reading: Reading) -> Finding:
    return _finding(
        str(reading.index),
        reading.condition.health,
        reading.condition.text,
        reading.condition.remedy,
        f"{reading.name}, {format_size(reading.total_bytes)}",
    )


def _finding(name: str, health: DeviceHealth, text: str, remedy: str, fine: str) -> Finding:
    about = f"device {name}"
    match health:
        case DeviceHealth.HEALTHY:
            return Finding(about=about, severity="ok", message=fine)
        case DeviceHealth.DEGRADED:
            severity = "warning"
        case DeviceHealth.QUARANTINED:
            severity = "error"
    return Finding(about=about, severity=severity, message=f"{health}: {text}", remedy=remedy)
