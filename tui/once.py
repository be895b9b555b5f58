"""The state once, as plain text or JSON: for scripts, screen readers and dumb terminals."""

from collections.abc import Sequence

import msgspec

from appliance.protocol.devices import Device, DeviceKind
from appliance.protocol.models import Model
from appliance.protocol.system import Snapshot
from tui.text import format as text
from tui.text.fit import fit, width_of
from tui.text.sanitize import sanitize_line
from tui.text.words import failure_line, launcher_problems, launchers_line

_NONE = "-"


def plain(snapshot: Snapshot) -> str:
    """A header, the devices, the models and the alerts."""
    server = snapshot.server
    version = server.vllm_version or "not installed"
    head = f"{server.host}  vLLM {version}  appliance {server.version}  {server.listen}/v1"
    if launchers := launchers_line(server.launchers):
        head += f"  {launchers}"
    devices: list[tuple[str, ...]] = [
        ("DEVICE", "KIND", "NAME", "USED GiB", "TOTAL GiB", "LOAD", "TEMP", "POWER", "BY")
    ]
    devices += [_device_cells(device) for device in snapshot.devices]
    models: list[tuple[str, ...]] = [
        ("MODEL", "STATE", "DEVICES", "GiB", "RUN", "WAIT", "TOK/S", "TTFT95", "NOTE")
    ]
    models += [_model_cells(model) for model in snapshot.models]
    parts = [sanitize_line(head), "", *_table(devices), "", *_table(models)]
    if problems := launcher_problems(server.launchers):
        parts += ["", *(f"warning: {problem}" for problem in problems)]
    if snapshot.alerts:
        parts += ["", *(_alert(a.severity, a.message, a.hint) for a in snapshot.alerts)]
    return "\n".join(parts)


def as_json(snapshot: Snapshot) -> str:
    """The snapshot as the server sends it."""
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=2).decode()


def _device_cells(device: Device) -> tuple[str, ...]:
    names = dict.fromkeys(occupant.model for occupant in device.occupants)
    by = device.problem or ", ".join(names) or _NONE
    load, heat, power = device.utilization_ratio, device.temperature_c, device.power_w
    return (
        "cpu" if device.kind is DeviceKind.CPU else str(device.index),
        device.kind.value,
        device.name,
        text.gib(device.used_bytes),
        text.gib(device.total_bytes),
        _NONE if load is None else text.percent(load),
        _NONE if heat is None else f"{heat:.0f}C",
        _NONE if power is None else f"{power:.0f}W",
        by,
    )


def _model_cells(model: Model) -> tuple[str, ...]:
    shares = model.placement.shares if model.placement else []
    return (
        model.id,
        model.state.value,
        text.index_ranges([share.device_index for share in shares]) or _NONE,
        text.gib(model.memory_bytes) if model.memory_bytes else _NONE,
        str(model.in_flight),
        str(model.waiting),
        _NONE if model.tokens_per_s is None else text.count(model.tokens_per_s),
        _NONE if model.ttft_p95_s is None else text.latency(model.ttft_p95_s),
        _note(model),
    )


def _note(model: Model) -> str:
    if model.progress is not None:
        ratio = model.progress.ratio
        percent = "" if ratio is None else f" {text.percent(ratio)}"
        eta = model.progress.eta_s
        left = "" if eta is None else f", {text.clock_span(eta)} left (est.)"
        return f"{model.progress.phase.value}{percent}{left}"
    if model.failure is not None:
        return f"{failure_line(model.failure)} {model.failure.hint}".rstrip()
    return model.waits_for or _NONE


def _alert(severity: str, message: str, hint: str) -> str:
    return sanitize_line(f"{severity}: {message} {hint}".rstrip())


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    clean = [[sanitize_line(cell) for cell in row] for row in rows]
    widths = [max(width_of(row[i]) for row in clean) for i in range(len(clean[0]))]
    return [
        "  ".join(fit(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in clean
    ]
