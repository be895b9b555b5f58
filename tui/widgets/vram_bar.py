"""The memory bar of a device: weights, KV cache, warm launchers, other processes, free."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from appliance.protocol.devices import Device
from tui.text.glyphs import Glyphs
from tui.text.rows import Row, Span

NEARLY_FULL = 0.90
FULL = 0.97


@dataclass(frozen=True)
class Parts:
    """How the memory of one device is used, in bytes."""

    weights: int
    kv_cache: int
    launchers: int
    other: int
    total: int


def parts_of(device: Device) -> Parts:
    """Split what was measured by what was planned.

    Weights fill up first while a model loads; what an engine holds beyond weights and KV cache
    (its runtime) is drawn as weights.
    """
    ours = max(0, device.used_bytes - device.other_bytes - device.launcher_bytes)
    planned_kv = sum(occupant.kv_cache_bytes for occupant in device.occupants)
    planned_weights = sum(occupant.weights_bytes for occupant in device.occupants)
    kv_cache = min(planned_kv, max(0, ours - planned_weights))
    return Parts(
        weights=ours - kv_cache,
        kv_cache=kv_cache,
        launchers=device.launcher_bytes,
        other=device.other_bytes,
        total=device.total_bytes,
    )


def bar_cells(parts: Parts, width: int) -> tuple[int, int, int, int, int]:
    """Cells of weights, KV cache, launchers, other and free; they add up to `width`."""
    total = max(parts.total, 1)
    edges, seen = [0], 0
    for part in (parts.weights, parts.kv_cache, parts.launchers, parts.other):
        seen += part
        edges.append(min(width, max(edges[-1], round(seen / total * width))))
    weights, kv_cache, launchers, other = (b - a for a, b in pairwise(edges))
    return weights, kv_cache, launchers, other, width - edges[-1]


def bar_row(device: Device, width: int, glyphs: Glyphs) -> Row:
    """The bar in exactly `width` cells."""
    weights, kv_cache, launchers, other, free = bar_cells(parts_of(device), width)
    return (
        Span(glyphs.weights * weights, "weights"),
        Span(glyphs.kv_cache * kv_cache, "kv"),
        Span(glyphs.launcher * launchers, "launcher"),
        Span(glyphs.other * other, "other"),
        Span(glyphs.free * free, "free"),
    )


def legend(devices: Iterable[Device], glyphs: Glyphs) -> Row:
    """What the parts of a bar mean; launchers only where a device holds some."""
    launcher: Row = (Span(glyphs.launcher, "launcher"), Span(" launcher ", "muted"))
    return (
        Span(glyphs.weights, "weights"),
        Span(" weights ", "muted"),
        Span(glyphs.kv_cache, "kv"),
        Span(" KV cache ", "muted"),
        *(launcher if any(device.launcher_bytes for device in devices) else ()),
        Span(glyphs.other, "other"),
        Span(" other ", "muted"),
        Span(glyphs.free, "free"),
        Span(" free", "muted"),
    )


def pressure_mark(device: Device) -> str:
    """`!` from 90 % used, `!!` from 97 %."""
    used = device.used_bytes / max(device.total_bytes, 1)
    if used >= FULL:
        return "!!"
    return "!" if used >= NEARLY_FULL else ""
