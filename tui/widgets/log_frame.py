"""What stands above and below the log."""

from dataclasses import dataclass

from appliance.protocol.engines import Engine
from tui.client.feed import Feed
from tui.state.view import View
from tui.text import format as text
from tui.text.fit import shorten, wrap
from tui.text.rows import Row, Span, spread
from tui.text.sanitize import sanitize_line
from tui.widgets.log_view import LogView
from tui.widgets.look import Look, rule_with
from tui.widgets.status_line import banner_rows, link_row

_NOTE_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class LogPlace:
    """Which log is shown, and what went wrong with it."""

    engine: str | None
    model: str | None
    note: str = ""


def ordered_engines(view: View) -> list[Engine]:
    """Running engines first, then the ended ones, the newest first."""
    return sorted(
        view.engines.values(), key=lambda e: (e.ended_at is not None, -e.created_at.timestamp())
    )


def head_rows(feed: Feed, look: Look, target: str, place: LogPlace, log: LogView) -> list[Row]:
    """Host, model, toggles and link; below it the engine and the filter."""
    view = feed.view
    host = sanitize_line(view.server.host) if view.server else "vLLM Appliance"
    engines = ordered_engines(view)
    ids = [engine.id for engine in engines]
    position = f"[{ids.index(place.engine) + 1}/{len(ids)} logs]" if place.engine in ids else ""
    left: Row = (
        Span(f" {host} ", "title"),
        Span(" Logs  "),
        Span(f"{shorten(sanitize_line(place.model or ''), 30)} ", "name"),
        Span(f" {position}", "muted"),
    )
    follow = f"{look.glyphs.follow} FOLLOW" if log.follow else "PAUSED"
    right: Row = (
        Span(follow, "good" if log.follow else "warn"),
        Span(f"  WRAP {'on ' if log.is_wrapped else 'off'}  ", "muted"),
        *link_row(feed.connection, look, target),
    )
    engine = view.engines.get(place.engine or "")
    title: Row = (Span(_engine_title(engine, place, look), "title"),)
    rule = rule_with(look, look.width, title, _filter_text(log))
    rows = [spread(left, right, look.width), *banner_rows(feed.connection, look, target), rule]
    if place.note:
        lines = wrap(f"! {sanitize_line(place.note)}", look.width - 2)
        rows += [(Span(f" {line}", "warn"),) for line in lines[:_NOTE_ROWS]]
    return rows


def foot_rows(look: Look, log: LogView) -> list[Row]:
    """Where in the log this is."""
    buffer = log.buffer
    total = max(buffer.total, buffer.last_number)
    current = log.current
    if current is None:
        where = "no line" if total == 0 else f"no line of {total:,} passes"
    else:
        where = f"line {current.number:,} of {total:,}"
    since = "tail" if buffer.first_number > 1 else "start"
    marked = "" if log.mark is None else f"{abs(log.cursor - log.mark) + 1} lines marked   "
    right: Row = (Span(f"{marked}held from line {buffer.first_number:,} ({since})", "muted"),)
    return [rule_with(look, look.width, (Span(where, "muted"),), right)]


def _engine_title(engine: Engine | None, place: LogPlace, look: Look) -> str:
    if engine is None:
        return sanitize_line(place.engine or "no engine has run yet")
    dot = look.glyphs.dot.center(3)
    parts = [sanitize_line(engine.model)]
    if engine.placement and engine.placement.shares:
        indices = [share.device_index for share in engine.placement.shares]
        parts.append(f"device {text.index_ranges(indices)}")
    if engine.pid is not None and engine.ended_at is None:
        parts.append(f"pid {engine.pid}")
    parts.append(f"{look.glyphs.state(engine.state)} {engine.state.value}")
    return dot.join(parts)


def _filter_text(log: LogView) -> Row:
    if log.filter is None:
        return ()
    count = sum(1 for line in log.shown if not line.gap)
    source = shorten(sanitize_line(log.filter.source), 24)
    # A count is of all lines only where all were looked at.
    where = f"from line {log.looked_from:,}"
    if log.looked_from <= 1:
        where = f"of {max(log.buffer.total, len(log.buffer.lines)):,}"
    dropped = f", {log.earlier.dropped:,} dropped" if log.earlier.dropped else ""
    return (Span(f"/{source}  ", "accent"), Span(f"{count:,} {where}{dropped}", "muted"))
