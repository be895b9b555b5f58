"""The table of models."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from appliance.protocol.engines import EngineState
from appliance.protocol.models import Model
from tui.state.view import View
from tui.text import format as text
from tui.text.fit import fit, fit_right, shorten_middle
from tui.text.rows import Row, Span, crop_row
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look

_ORDER = (
    EngineState.READY,
    EngineState.LOADING,
    EngineState.STARTING,
    EngineState.WAKING,
    EngineState.FREEING,
    EngineState.QUEUED,
    EngineState.DRAINING,
    EngineState.STOPPING,
    EngineState.ASLEEP,
    EngineState.FAILED,
    EngineState.STOPPED,
)
STATE_STYLES = {
    EngineState.READY: "good",
    EngineState.ASLEEP: "asleep",
    EngineState.STOPPED: "muted",
    EngineState.FAILED: "error",
}
_LIVE = frozenset({EngineState.READY, EngineState.DRAINING})


@dataclass(frozen=True)
class _Column:
    head: str
    width: int
    cell: Callable[[Model, Look, datetime], str]
    left: bool = False


def sorted_models(view: View) -> list[Model]:
    """By state, the active ones first, then by name."""
    return sorted(view.models.values(), key=lambda m: (_ORDER.index(m.state), m.id))


def state_style(state: EngineState) -> str:
    """Style name of a state."""
    return STATE_STYLES.get(state, "busy")


def model_head(look: Look, width: int) -> Row:
    """The column heads."""
    columns = _columns_for(width)
    name_width = _name_width(columns, width)
    row = [Span("   " + fit("MODEL", name_width), "head")]
    for column in columns:
        align = fit if column.left else fit_right
        row.append(Span(" " + align(column.head, column.width), "head"))
    return crop_row(tuple(row), width)


def model_row(model: Model, look: Look, width: int, *, selected: bool) -> Row:
    """One model."""
    columns = _columns_for(width)
    cursor = f" {look.glyphs.cursor} " if selected else "   "
    name_width = _name_width(columns, width)
    name = shorten_middle(sanitize_line(model.id), name_width, ellipsis=look.glyphs.ellipsis)
    row = [
        Span(cursor, "cursor"),
        Span(fit(name, name_width), "selected" if selected else "name"),
    ]
    now = look.clock.now()
    for column in columns:
        align = fit if column.left else fit_right
        cell = align(column.cell(model, look, now), column.width)
        row.append(Span(" " + cell, state_style(model.state) if column.head == "STATE" else ""))
    return crop_row(tuple(row), width)


def idle_cell(model: Model, look: Look, now: datetime) -> str:
    """Time until the model is unloaded for being idle."""
    if model.settings.always_on or model.settings.pinned:
        return "keep"
    if model.state not in _LIVE and model.state is not EngineState.ASLEEP:
        return look.glyphs.none
    if model.in_flight:
        return "busy"
    if model.idle_unload_at is None:
        return look.glyphs.none
    return text.countdown((model.idle_unload_at - now).total_seconds())


def _state(model: Model, look: Look, _now: datetime) -> str:
    return f"{look.glyphs.state(model.state)} {model.state.value}"


def _devices(model: Model, look: Look, _now: datetime) -> str:
    if model.placement is None or not model.placement.shares:
        return look.glyphs.none
    return text.index_ranges([share.device_index for share in model.placement.shares])


def _tp(model: Model, _look: Look, _now: datetime) -> str:
    return str(model.placement.tp_size if model.placement else model.settings.tp_size)


def _memory(model: Model, look: Look, _now: datetime) -> str:
    return text.gib(model.memory_bytes) if model.memory_bytes else look.glyphs.none


def _context(model: Model, look: Look, _now: datetime) -> str:
    return text.tokens(model.context_length) if model.context_length else look.glyphs.none


def _running(model: Model, look: Look, _now: datetime) -> str:
    return str(model.in_flight) if model.state in _LIVE else look.glyphs.none


def _waiting(model: Model, look: Look, _now: datetime) -> str:
    return str(model.waiting) if model.waiting or model.state in _LIVE else look.glyphs.none


def _rate(model: Model, look: Look, _now: datetime) -> str:
    rate = model.tokens_per_s if model.state in _LIVE else None
    return look.glyphs.none if rate is None else text.count(rate)


def _ttft(model: Model, look: Look, _now: datetime) -> str:
    ttft = model.ttft_p95_s if model.state in _LIVE else None
    return look.glyphs.none if ttft is None else text.latency(ttft)


def _requests(model: Model, _look: Look, _now: datetime) -> str:
    return text.count(model.requests_total)


# Kept in this order while the width shrinks: (column, least width of the table that shows it).
_COLUMNS: tuple[tuple[_Column, int], ...] = (
    (_Column("STATE", 10, _state, left=True), 0),
    (_Column("DEV", 5, _devices, left=True), 40),
    (_Column("TP", 2, _tp), 92),
    (_Column("GiB", 6, _memory), 48),
    (_Column("CTX", 5, _context), 92),
    (_Column("RUN", 4, _running), 54),
    (_Column("WAIT", 4, _waiting), 60),
    (_Column("TOK/S", 6, _rate), 66),
    (_Column("TTFT95", 6, _ttft), 73),
    (_Column("IDLE", 5, idle_cell), 78),
    (_Column("REQS", 8, _requests), 100),
)


def _columns_for(width: int) -> list[_Column]:
    return [column for column, least in _COLUMNS if width >= least]


def _name_width(columns: list[_Column], width: int) -> int:
    taken = 3 + sum(column.width + 1 for column in columns) + 1
    return max(8, min(width - taken, 44))
