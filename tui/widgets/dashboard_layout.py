"""The dashboard as rows: which section gets how many lines at which size."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.protocol.batches import BatchProgress
from tui.client.feed import Feed
from tui.state.view import View
from tui.text.rows import Row, Span, pad_row
from tui.text.words import launchers_line
from tui.widgets.activity import is_told, rates_row, recent_rows
from tui.widgets.alert_list import alert_rows
from tui.widgets.batch_rows import batch_row, batch_section, open_batches
from tui.widgets.device_panel import device_rows
from tui.widgets.log_strip import LogStrip
from tui.widgets.look import XWIDE_COLUMNS, Look, note_row, rule_row
from tui.widgets.model_detail import detail_rows
from tui.widgets.model_table import model_head, model_row, sorted_models
from tui.widgets.progress_row import failure_row, has_failed, progress_rows
from tui.widgets.status_line import banner_rows, launcher_rows, status_row

_DETAIL_ROWS = 5
_MOST_PROGRESS = 4
_MOST_BATCHES = 2
_STRIP_FROM_ROWS = 40
_ABOVE_STRIP = 28
_LEAST_STRIP = 6


def strip_rows(view: View, look: Look) -> int:
    """Lines for the log strip; 0 where there is no room for one."""
    if look.width < XWIDE_COLUMNS or look.height < _STRIP_FROM_ROWS:
        return 0
    above = 3 + len(view.devices) + _models_need(view, None) + _DETAIL_ROWS
    room = look.height - max(above, _ABOVE_STRIP)
    return room if room >= _LEAST_STRIP else 0


@dataclass(kw_only=True)
class Picture:
    """Rows to paint, and which of them stand for a model."""

    rows: list[Row] = field(default_factory=list)
    models: dict[int, str] = field(default_factory=dict)


def dashboard(
    feed: Feed, look: Look, selected: str | None, target: str, strip: LogStrip | None = None
) -> Picture:
    """The whole screen without the key bar."""
    picture = Picture(rows=[status_row(feed, look, target)])
    picture.rows += banner_rows(feed.connection, look, target)
    picture.rows += launcher_rows(feed.view, look)
    if look.is_wide:
        strip_room = strip_rows(feed.view, look)
        _two_columns(picture, feed, look, selected, look.height - strip_room)
        if strip is not None and strip_room:
            picture.rows += strip.rows(look, look.width, strip_room)
    else:
        _one_column(picture, feed, look, selected)
    del picture.rows[look.height :]
    return picture


def _one_column(picture: Picture, feed: Feed, look: Look, selected: str | None) -> None:
    view = feed.view
    picture.rows += device_rows(view, look, look.width)
    room = look.height - len(picture.rows)
    if look.is_tiny:
        _add_models(picture, view, look, look.width, selected, room)
        return
    alerts = len(view.alerts)
    told = sum(map(is_told, view.happenings))
    alerts_room = min(alerts, 1) + 1 if alerts else 0
    activity_room = 2
    models_need = _models_need(view, selected)
    spare = room - alerts_room - activity_room - models_need
    if spare > 0 and alerts > 1:
        alerts_room += min(spare, alerts - 1, 3)
    spare = room - alerts_room - activity_room - models_need
    batches = open_batches(view)[: max(0, min(spare, _MOST_BATCHES))]
    spare -= len(batches)
    activity_room += len(batches)
    if spare > 0:
        activity_room += min(spare, told, 3)
    spare = room - alerts_room - activity_room - models_need
    detail = _detail(view, look, look.width, selected) if spare > _DETAIL_ROWS else []
    models_room = room - alerts_room - activity_room - len(detail)
    _add_models(picture, view, look, look.width, selected, models_room)
    bottom = _activity(feed, look, look.width, activity_room, batches=batches)
    bottom += _alerts(view, look, look.width, alerts_room, hints=False)
    _fill(picture, look.height - len(bottom) - len(detail))
    picture.rows += detail + bottom


def _two_columns(
    picture: Picture, feed: Feed, look: Look, selected: str | None, height: int
) -> None:
    view = feed.view
    right_width = 62 if look.width >= XWIDE_COLUMNS else 38
    left_width = look.width - right_width - 1
    room = height - len(picture.rows)
    left = Picture(rows=device_rows(view, look, left_width))
    detail = _detail(view, look, left_width, selected)
    if len(left.rows) + len(detail) + _models_need(view, selected) > room:
        detail = []
    models_room = room - len(left.rows) - len(detail)
    _add_models(left, view, look, left_width, selected, models_room)
    left.rows += detail
    _fill(left, room)
    right = _right_column(feed, look, right_width, room)
    start = len(picture.rows)
    column = Span(look.glyphs.column, "rule")
    for line in range(room):
        side = right[line] if line < len(right) else ()
        picture.rows.append((*pad_row(left.rows[line], left_width), column, *side))
    picture.models = {start + line: model for line, model in left.models.items()}


def _right_column(feed: Feed, look: Look, width: int, room: int) -> list[Row]:
    view = feed.view
    alerts = _alerts(view, look, width, min(room // 2, 1 + 2 * len(view.alerts)), hints=True)
    if not alerts:
        alerts = [rule_row(look, width, "Alerts"), note_row("none")]
    rows = [*alerts, ()]
    if batches := batch_section(view, look, width, (room - len(rows)) // 2):
        rows += [*batches, ()]
    return rows + _activity(feed, look, width, room - len(rows), empty=True)


def _add_models(
    picture: Picture, view: View, look: Look, width: int, selected: str | None, room: int
) -> None:
    """The table, its scroll position from the selection, and the lines below it."""
    models = sorted_models(view)
    below = progress_rows(models, look, width)[:_MOST_PROGRESS]
    chosen = view.models.get(selected) if selected else None
    if chosen is not None and has_failed(chosen):
        below.append(failure_row(chosen, look, width))
    fits = max(1, room - 2 - len(below))
    if len(models) > fits and look.is_tiny:
        below, fits = [], max(1, room - 2)
    position = next((i for i, m in enumerate(models) if m.id == selected), 0)
    first = max(0, min(position - fits // 2, len(models) - fits))
    shown = models[first : first + fits]
    picture.rows.append(rule_row(look, width, *_table_titles(len(models), first, len(shown))))
    picture.rows.append(model_head(look, width))
    if not models:
        picture.rows.append(_no_models(view, look))
    for model in shown:
        picture.models[len(picture.rows)] = model.id
        picture.rows.append(model_row(model, look, width, selected=model.id == selected))
    picture.rows += below


def _table_titles(known: int, first: int, shown: int) -> tuple[str, str]:
    title = f"Models ({known} known)" if known else "Models"
    if shown < known:
        return title, f"{first + 1}-{first + shown} of {known}, sorted by state"
    return title, "sorted by state"


def _no_models(view: View, look: Look) -> Row:
    if view.server is None:
        return note_row(look.glyphs.none)
    return note_row("No models yet. `appliance add <folder>` makes one known.")


def _models_need(view: View, selected: str | None) -> int:
    models = list(view.models.values())
    busy = sum(model.progress is not None for model in models)
    queued = sum(model.waits_for is not None for model in models)
    chosen = view.models.get(selected) if selected else None
    below = min(busy + queued, _MOST_PROGRESS) + has_failed(chosen)
    return 2 + max(len(models), 1) + below


def _detail(view: View, look: Look, width: int, selected: str | None) -> list[Row]:
    model = view.models.get(selected) if selected else None
    return [] if model is None else detail_rows(model, look, width)


def _activity(
    feed: Feed,
    look: Look,
    width: int,
    room: int,
    *,
    batches: Sequence[BatchProgress] = (),
    empty: bool = False,
) -> list[Row]:
    if room < 2:
        return []
    server = feed.view.server
    measured = max((device.launcher_bytes for device in feed.view.devices), default=0)
    launchers = launchers_line(server.launchers, measured) if server else ""
    rows = [rule_row(look, width, "Activity", launchers), rates_row(feed, look, width)]
    rows += [batch_row(each, look, width) for each in batches]
    recent = recent_rows(feed.view.happenings, look, width, room - len(rows))
    if not recent and empty:
        return [*rows, note_row("nothing loaded or unloaded since you connected")]
    return rows + recent


def _alerts(view: View, look: Look, width: int, room: int, *, hints: bool) -> list[Row]:
    if room < 2 or not view.alerts:
        return []
    rows = [rule_row(look, width, "Alerts", str(len(view.alerts)))]
    return rows + alert_rows(view.alerts, look, width, room - 1, hints=hints)


def _fill(picture: Picture, height: int) -> None:
    picture.rows += [()] * (height - len(picture.rows))
    del picture.rows[max(height, 0) :]
