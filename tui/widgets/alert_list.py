"""Alerts: what somebody should look at."""

from appliance.protocol.system import Alert
from tui.text.fit import shorten
from tui.text.rows import Row, Span, spread
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look


def alert_rows(
    alerts: tuple[Alert, ...], look: Look, width: int, room: int, *, hints: bool
) -> list[Row]:
    """The newest first, with their hints where there is room."""
    rows: list[Row] = []
    for alert in reversed(alerts):
        if len(rows) >= room:
            break
        rows.append(_alert_row(alert, look, width, with_hint=not hints))
        if hints and alert.hint and len(rows) < room:
            hint = shorten(sanitize_line(alert.hint), width - 13, ellipsis=look.glyphs.ellipsis)
            rows.append((Span(" " * 12 + hint, "muted"),))
    return rows


def _alert_row(alert: Alert, look: Look, width: int, *, with_hint: bool) -> Row:
    is_error = alert.severity == "error"
    mark = look.glyphs.error if is_error else "!"
    style = "error" if is_error else "warn"
    subject = f"{sanitize_line(alert.model)}: " if alert.model else ""
    message = sanitize_line(alert.message)
    if alert.model and message.startswith(sanitize_line(alert.model)):
        subject = ""
    left: Row = (
        Span(f" {look.time(alert.at)} ", "muted"),
        Span(f"{mark} ", style),
        Span(subject + message),
    )
    used = 12 + len(subject) + len(message)
    hint = f"  {sanitize_line(alert.hint)} "
    if with_hint and alert.hint and used + len(hint) <= width:
        return spread(left, (Span(hint, "muted"),), width)
    room = width - 12
    return (*left[:2], Span(shorten(subject + message, room, ellipsis=look.glyphs.ellipsis)))
