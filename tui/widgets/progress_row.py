"""Lines under the table: how far loads are, what queues wait for, why the selected one failed."""

from appliance.protocol.engines import EngineState, LoadProgress
from appliance.protocol.models import Model
from tui.text import format as text
from tui.text.fit import fit, fit_right, shorten, shorten_middle, width_of
from tui.text.glyphs import Glyphs
from tui.text.rows import Row, Span, pad_row, row_width
from tui.text.sanitize import sanitize_line
from tui.text.words import failure_line
from tui.widgets.look import Look

_NARROW_BAR = 20
_WIDE_BAR = 30


def progress_rows(models: list[Model], look: Look, width: int) -> list[Row]:
    """One line for each model that loads, and one for each queue that waits for something."""
    rows = [
        progress_row(model.id, model.progress, look, width) for model in models if model.progress
    ]
    rows.extend(_waiting_row(model, look, width) for model in models if model.waits_for)
    return rows


def progress_row(name: str, progress: LoadProgress, look: Look, width: int) -> Row:
    """Phase, detail, bar, percent and ETA of one load."""
    none = look.glyphs.none
    bar = _WIDE_BAR if width >= 100 else _NARROW_BAR
    right: list[Span] = []
    if width >= 60:
        right.append(Span(" "))
        right.extend(bar_spans(progress.ratio, bar, look.glyphs))
    ratio = none if progress.ratio is None else text.percent(progress.ratio)
    right.append(Span(fit_right(ratio, 5)))
    eta = none if progress.eta_s is None else f"{text.clock_span(progress.eta_s)} (est.)"
    right.append(Span(fit_right(f"ETA {eta}", 17), "muted"))
    room = width - row_width(right)
    name_room = min(24, max(8, room // 2 - 2))
    label = shorten_middle(sanitize_line(name), name_room, ellipsis=look.glyphs.ellipsis)
    phase = f"{progress.phase.value} {sanitize_line(progress.detail)}".strip()
    left: Row = (Span(f"     {label}", "name"), Span("  "))
    phase_room = room - row_width(left)
    return (*left, Span(fit(phase, max(phase_room, 0)), "busy"), *right)


def bar_spans(ratio: float | None, width: int, glyphs: Glyphs) -> Row:
    """A progress bar; None is an empty one."""
    done = round(max(0.0, min(1.0, ratio or 0.0)) * width)
    tip = glyphs.bar_tip if 0 < done < width else ""
    return (
        Span(glyphs.bar_done * (done - len(tip)) + tip, "accent"),
        Span(glyphs.bar_rest * (width - done), "rule"),
    )


def failure_row(model: Model, look: Look, width: int) -> Row:
    """Why the selected model failed, in one line."""
    assert model.failure is not None
    right: Row = (Span("  Enter: why ", "key"),) if width >= 60 else ()
    name = shorten_middle(sanitize_line(model.id), 24, ellipsis=look.glyphs.ellipsis)
    reason = f"     {look.glyphs.error} {name}: {failure_line(model.failure)}"
    room = width - row_width(right)
    left: Row = (Span(shorten(reason, room, ellipsis=look.glyphs.ellipsis), "error"),)
    hint = f"  {sanitize_line(model.failure.hint)}"
    if model.failure.hint and row_width(left) + width_of(hint) <= room:
        left = (*left, Span(hint, "good"))
    return (*pad_row(left, room), *right)


def has_failed(model: Model | None) -> bool:
    """True where there is a failure to explain."""
    return model is not None and model.failure is not None and model.state is EngineState.FAILED


def _waiting_row(model: Model, look: Look, width: int) -> Row:
    name = shorten_middle(sanitize_line(model.id), 24, ellipsis=look.glyphs.ellipsis)
    queue = f"{model.waiting} queued, " if model.waiting else ""
    reason = f"{queue}waits: {sanitize_line(model.waits_for or '')}"
    left: Row = (Span(f"     {name}", "name"), Span("  "))
    room = width - row_width(left) - 1
    return (*left, Span(shorten(reason, room, ellipsis=look.glyphs.ellipsis), "warn"))
