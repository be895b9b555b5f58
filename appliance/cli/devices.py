"""devices: what engines can be placed on, in which state it is, and who holds its memory."""

import argparse
from collections.abc import Sequence

from appliance.cli.client import ServerClient
from appliance.cli.output import print_json, print_table, safe
from appliance.protocol.devices import Device, DeviceHealth, DeviceKind, Link
from appliance.units import format_size

Subparsers = argparse._SubParsersAction

_LINKS = {
    Link.NVLINK: "NVLink",
    Link.PCIE_SWITCH: "PCIe switch",
    Link.SAME_NUMA: "same processor",
    Link.SYSTEM: "across processors",
}


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser("devices", help="list the devices, their health and memory")
    parser.set_defaults(func=_devices)


def _devices(args: argparse.Namespace) -> int:
    devices = ServerClient(args.url).get("/admin/v1/devices", list[Device])
    if args.json:
        print_json(devices)
        return 0
    print_devices(devices)
    return 0


def print_devices(devices: Sequence[Device]) -> None:
    """A table, and below it all that needs more words."""
    rows = [
        [
            label(device),
            device.name,
            device.health.value,
            format_size(device.used_bytes),
            format_size(device.total_bytes),
            format_size(device.free_bytes),
            ", ".join(dict.fromkeys(each.model for each in device.occupants)) or "-",
        ]
        for device in devices
    ]
    print_table(["DEVICE", "NAME", "HEALTH", "USED", "SIZE", "FREE", "MODELS"], rows)
    for line in [*ailing_lines(devices), *_memory_lines(devices), *_link_lines(devices)]:
        print(safe(line))


def label(device: Device) -> str:
    """What people call it: its index, or `cpu`."""
    return "cpu" if device.kind is DeviceKind.CPU else str(device.index)


def ailing_lines(devices: Sequence[Device]) -> list[str]:
    """What is wrong with devices, and what can be done."""
    lines = []
    for device in devices:
        if device.health is not DeviceHealth.HEALTHY:
            lines.append(
                f"device {label(device)} is {device.health}: {device.problem or device.note}"
            )
            if device.remedy:
                lines.append(f"    {device.remedy}")
    return lines


def _memory_lines(devices: Sequence[Device]) -> list[str]:
    lines = []
    for device in devices:
        if device.freeing_bytes:
            lines.append(
                f"device {label(device)}: waits for {format_size(device.freeing_bytes)} of an"
                " engine that has ended"
            )
        lines += [
            f"device {label(device)}: {format_size(process.bytes)} held by process"
            f" {process.pid} ({process.name or 'not visible from here'})"
            for process in device.processes
        ]
    return lines


def _link_lines(devices: Sequence[Device]) -> list[str]:
    """Pairs that are close to each other."""
    by_id = {device.id: device for device in devices}
    pairs: dict[Link, list[str]] = {}
    for device in devices:
        for peer, link in device.links.items():
            if peer in by_id and device.index < by_id[peer].index and link < Link.SYSTEM:
                pairs.setdefault(link, []).append(f"{label(device)}-{label(by_id[peer])}")
    return [f"linked by {_LINKS[link]}: {', '.join(pairs[link])}" for link in sorted(pairs)]
