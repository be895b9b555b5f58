"""The devices: one line each, or a grid where they are many."""

from collections.abc import Mapping

from appliance.protocol.devices import Device, DeviceKind
from appliance.protocol.engines import EngineState
from appliance.protocol.models import Model
from tui.state.view import View
from tui.text import format as text
from tui.text.fit import fit, fit_right, shorten_middle, width_of
from tui.text.rows import Row, Span, crop_row, pad_row, row_width
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look, note_row, rule_with
from tui.widgets.vram_bar import bar_row, legend, pressure_mark

_KIND_TITLES = {
    DeviceKind.GPU: "GPUs",
    DeviceKind.CPU: "CPU memory (no GPU in use)",
    DeviceKind.SIMULATED: "GPUs (simulated)",
}
_BUSY = frozenset({EngineState.STARTING, EngineState.LOADING, EngineState.WAKING})
_MIN_BAR = 6


def device_rows(view: View, look: Look, width: int) -> list[Row]:
    """The section: its rule and the devices."""
    title: Row = (Span(_title(view.devices), "title"),)
    rows = [rule_with(look, width, title, legend(view.devices, look.glyphs))]
    if not view.devices:
        text_ = "No device seen." if view.server else look.glyphs.none
        return [*rows, note_row(text_)]
    per_row = _devices_per_row(len(view.devices), look)
    if per_row == 1:
        full = {d.id: _line(d, view.models, look, width) for d in view.devices}
        return rows + [full[device.id] for device in view.devices]
    cell = width // per_row
    build = _half_line if per_row == 2 else _small_cell
    for start in range(0, len(view.devices), per_row):
        cells = (
            pad_row(build(device, view.models, look, cell), cell)
            for device in view.devices[start : start + per_row]
        )
        rows.append(tuple(span for row in cells for span in row))
    return rows


def summary(devices: tuple[Device, ...], look: Look) -> str:
    """`4×H100 80G` for the header; kinds that are no GPU say so."""
    groups: dict[str, int] = {}
    for device in devices:
        size = f"{device.total_bytes / text.GIB:.0f}G"
        name = f"{short_name(device)} {size}"
        groups[name] = groups.get(name, 0) + 1
    many = look.glyphs.times
    return " + ".join(f"{n}{many}{name}" if n > 1 else name for name, n in groups.items())


def short_name(device: Device) -> str:
    """The name without its maker and its memory."""
    if device.kind is DeviceKind.CPU:
        return "CPU"
    if device.kind is DeviceKind.SIMULATED:
        return "simulated"
    name = sanitize_line(device.name)
    for word in ("NVIDIA ", "GeForce ", "Tesla "):
        name = name.replace(word, "")
    kept = [w for w in name.split() if not w.upper().endswith(("GB", "GIB")) and w != "HBM3"]
    return " ".join(kept) or "GPU"


def _title(devices: tuple[Device, ...]) -> str:
    kinds = {device.kind for device in devices}
    if len(kinds) > 1:
        return "Devices"
    return _KIND_TITLES[next(iter(kinds))] if kinds else "Devices"


def _devices_per_row(count: int, look: Look) -> int:
    lines = max(4, (look.height - 16) // 2)
    if look.is_tiny or count <= lines:
        return 1
    return 2 if count <= 2 * lines else 4


def _label(device: Device) -> str:
    if device.kind is DeviceKind.CPU:
        return "cpu"
    prefix = "s" if device.kind is DeviceKind.SIMULATED else ""
    return f"{prefix}{device.index}".rjust(2)


def _numbers(device: Device, look: Look) -> list[Span]:
    """Readings in fixed widths, the most useful first."""
    none = look.glyphs.none
    used = f"{text.gib(device.used_bytes)}/{text.gib(device.total_bytes)} GiB"
    mark = pressure_mark(device)
    load, heat, power = (device.utilization_ratio, device.temperature_c, device.power_w)
    return [
        Span(fit_right(used, 14)),
        Span(fit(mark, 3), "warn"),
        Span(fit_right(none if load is None else text.percent(load), 4)),
        Span(fit_right(none if heat is None else f"{heat:.0f}C", 4)),
        Span(fit_right(none if power is None else f"{power:.0f}W", 5)),
    ]


def _line(device: Device, models: Mapping[str, Model], look: Look, width: int) -> Row:
    label: Row = (Span(f" {_label(device)} ", "key"),)
    if device.problem is not None:
        problem = f"{look.glyphs.error} {sanitize_line(device.problem)}"
        return crop_row((*label, Span(problem, "error")), width)
    numbers = _numbers(device, look)
    names_room = 14 if width >= 76 else 0
    if width >= 90:
        names_room = 18 + (width - 90) // 3
    while len(numbers) > 1 and _bar_room(label, numbers, width, names_room) < _MIN_BAR:
        numbers.pop()
    bar = max(min(_bar_room(label, numbers, width, names_room), 48), 0)
    row: Row = (*label, *bar_row(device, bar, look.glyphs), *numbers)
    left = width - row_width(row) - 3
    return (*row, Span("  "), *_occupants(device, models, look, left)) if left > 5 else row


def _bar_room(label: Row, numbers: list[Span], width: int, names_room: int) -> int:
    return width - row_width(label) - row_width(numbers) - names_room - 2


def _half_line(device: Device, models: Mapping[str, Model], look: Look, width: int) -> Row:
    label: Row = (Span(f" {_label(device)} ", "key"),)
    if device.problem is not None:
        return crop_row((*label, Span(sanitize_line(device.problem), "error")), width - 1)
    used, _, load, *_rest = _numbers(device, look)
    numbers = Span(used.text.strip().replace(" GiB", "").rjust(11))
    row: Row = (*label, *bar_row(device, 10, look.glyphs), numbers, load)
    left = width - row_width(row) - 2
    return (*row, Span(" "), *_occupants(device, models, look, left)) if left > 3 else row


def _small_cell(device: Device, _models: Mapping[str, Model], look: Look, width: int) -> Row:
    label: Row = (Span(f" {_label(device)} ", "key"),)
    if device.problem is not None:
        return crop_row((*label, Span(f"{look.glyphs.error} problem", "error")), width)
    load = _numbers(device, look)[2]
    bar = max(width - row_width(label) - 6, 1)
    return (*label, *bar_row(device, bar, look.glyphs), load)


def _occupants(device: Device, models: Mapping[str, Model], look: Look, width: int) -> Row:
    """The models on a device, as many names as fit, the rest counted."""
    names = list(dict.fromkeys(occupant.model for occupant in device.occupants))
    if not names:
        return ()
    labels = [_occupant_label(name, models.get(name), look, width) for name in names]
    shown = len(labels)
    while shown > 1 and width_of(_joined(labels, shown)) > width:
        shown -= 1
    if shown == 1 and len(labels) > 1:
        rest = f" +{len(labels) - 1}"
        first = shorten_middle(labels[0], width - len(rest), ellipsis=look.glyphs.ellipsis)
        return (Span(first + rest, "name"),)
    return (Span(shorten_middle(_joined(labels, shown), width), "name"),)


def _joined(labels: list[str], shown: int) -> str:
    rest = len(labels) - shown
    return ", ".join(labels[:shown]) + (f" +{rest}" if rest else "")


def _occupant_label(name: str, model: Model | None, look: Look, width: int) -> str:
    label = sanitize_line(name)
    if model is None or model.state not in _BUSY:
        return label
    ratio = model.progress.ratio if model.progress else None
    told = "" if ratio is None else f"{label} {text.percent(ratio)}"
    return told if told and width_of(told) <= width else f"{label}{look.glyphs.rising}"
