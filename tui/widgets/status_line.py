"""The top line: who is looked at, in short, and how the link is."""

from collections import Counter

from appliance.protocol.engines import EngineState
from tui.client.feed import Feed
from tui.state.connection import Connection, Link
from tui.state.view import View
from tui.text import format as text
from tui.text.fit import shorten, width_of
from tui.text.rows import Row, Span, row_width, spread
from tui.text.sanitize import sanitize_line
from tui.text.words import launcher_problems
from tui.widgets.device_panel import summary
from tui.widgets.look import Look

_COUNTED = (
    (EngineState.READY, "good"),
    (EngineState.LOADING, "busy"),
    (EngineState.ASLEEP, "asleep"),
    (EngineState.FAILED, "error"),
)
_AS_LOADING = frozenset({EngineState.STARTING, EngineState.WAKING, EngineState.FREEING})
_STALE_STEP_S = 5
_GONE_AFTER_S = 10.0


def status_row(feed: Feed, look: Look, target: str) -> Row:
    """Host, devices, version, counts, link: the middle gives way where it is narrow."""
    right = link_row(feed.connection, look, target)
    view = feed.view
    if view.server is None:
        return spread((Span(" vLLM Appliance", "title"),), right, look.width)
    host: Row = (Span(f" {shorten(sanitize_line(view.server.host), 24)} ", "title"),)
    pieces = [
        _counts(view),
        _piece(summary(view.devices, look)),
        _version(view),
        *_wide_pieces(view, look),
    ]
    room = look.width - row_width(host) - row_width(right)
    kept: list[Row] = []
    for piece in pieces:
        if row_width(piece) <= room - sum(map(row_width, kept)):
            kept.append(piece)
    # Drawn as: devices, version, ..., counts; the counts were kept first as the most useful.
    ordered = kept[1:] + kept[:1] if kept and kept[0] is pieces[0] else kept
    return spread((*host, *(span for piece in ordered for span in piece)), right, look.width)


def link_row(connection: Connection, look: Look, target: str) -> Row:
    """The state of the link."""
    label, style = _link_label(connection, look, target)
    readonly: Row = (Span("read-only  ", "warn"),) if look.readonly else ()
    return (*readonly, Span(f"{label} ", style))


def banner_rows(connection: Connection, look: Look, target: str) -> list[Row]:
    """What is wrong with the link and what to do, where waiting will not cure it."""
    if connection.link is Link.RECONNECTING:
        return _gone_rows(connection, look)
    if connection.link not in {Link.DISCONNECTED, Link.UNAUTHORISED, Link.MISMATCH}:
        return []
    what = {
        Link.DISCONNECTED: f"No connection to {target} for over a minute",
        Link.UNAUTHORISED: "The server refuses this key",
        Link.MISMATCH: "Version mismatch",
    }[connection.link]
    again = "" if connection.link is Link.MISMATCH else "   Enter: try again"
    first = f" {look.glyphs.error} {what}: {connection.error}"
    rows: list[Row] = [(Span(shorten(first, look.width), "banner"),)]
    if connection.hint or again:
        rows.append((Span(shorten(f"   {connection.hint}{again}", look.width), "banner"),))
    return rows


def launcher_rows(view: View, look: Look) -> list[Row]:
    """What made warm launchers fail; nothing is to be done at once, so it is no banner."""
    if view.server is None or look.is_tiny:
        return []
    told = (f" ! {problem}" for problem in launcher_problems(view.server.launchers))
    plain = "; engines start in the plain way"
    return [
        (Span(shorten(line + plain, look.width, ellipsis=look.glyphs.ellipsis), "warn"),)
        for line in told
    ]


def _gone_rows(connection: Connection, look: Look) -> list[Row]:
    """One line once the server has been away for longer than a restart takes."""
    lost_at = connection.lost_at
    if lost_at is None or look.clock.monotonic() - lost_at < _GONE_AFTER_S:
        return []
    told = f" {look.glyphs.error} No server; this picture is old. "
    hint = connection.hint or sanitize_line(connection.error)
    if width_of(told + hint) > look.width:
        hint = hint.split(", or ")[0]
    return [(Span(shorten(told + hint, look.width), "banner"),)]


def _link_label(connection: Connection, look: Look, target: str) -> tuple[str, str]:
    now = look.clock.monotonic()
    glyphs = look.glyphs
    if connection.link is Link.LIVE:
        return f"{glyphs.live} LIVE", "good"
    if connection.link is Link.STALE:
        silent = int(now - (connection.heard_at or now))
        step = silent if silent < 10 else silent // _STALE_STEP_S * _STALE_STEP_S
        return f"{glyphs.stale} STALE {step}s", "warn"
    if connection.link is Link.CONNECTING:
        where = shorten(sanitize_line(target), max(12, look.width - 34))
        return f"{glyphs.connecting} connecting {where}", "busy"
    if connection.link is Link.RECONNECTING:
        if connection.retry_at is None:
            return f"{glyphs.retry} retry {connection.attempt}", "warn"
        left = max(0.0, connection.retry_at - now)
        return f"{glyphs.retry} retry {connection.attempt} in {left:.1f}s", "warn"
    if connection.link is Link.UNAUTHORISED:
        return f"{glyphs.error} NOT ALLOWED", "error"
    if connection.link is Link.MISMATCH:
        return "! VERSION", "warn"
    return f"{glyphs.error} DISCONNECTED", "error"


def _counts(view: View) -> Row:
    states = Counter(
        EngineState.LOADING if model.state in _AS_LOADING else model.state
        for model in view.models.values()
    )
    row = [Span("  ")]
    for state, style in _COUNTED:
        if states[state]:
            row.append(Span(f"{states[state]} {state.value} ", style))
    return tuple(row) if len(row) > 1 else (Span("  none loaded ", "muted"),)


def _piece(words: str) -> Row:
    return (Span(f" {words} "),) if words else ()


def _version(view: View) -> Row:
    assert view.server is not None
    if view.server.draining:
        return (Span(" draining ", "warn"),)
    version = view.server.vllm_version
    return _piece(f"vLLM {sanitize_line(version)}" if version else "no vLLM installed")


def _wide_pieces(view: View, look: Look) -> list[Row]:
    if not look.is_wide or view.server is None:
        return []
    up = (look.clock.now() - view.server.started_at).total_seconds()
    listen = sanitize_line(view.server.listen)
    return [_piece(f"up {text.uptime(up)}"), _piece(f"{listen}/v1")]
