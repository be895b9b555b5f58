"""Activity: rates with their history, and what was swapped, loaded and unloaded last."""

from appliance.protocol.engines import EngineState
from appliance.protocol.events import Swapped, Transition
from tui.client.feed import Feed
from tui.state.view import Happening
from tui.text import format as text
from tui.text.fit import shorten
from tui.text.rows import Row, Span
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look
from tui.widgets.model_table import state_style
from tui.widgets.sparkline import sparkline

_SHOWN_STATES = frozenset(
    {EngineState.READY, EngineState.ASLEEP, EngineState.FAILED, EngineState.STOPPED}
)


def rates_row(feed: Feed, look: Look, width: int) -> Row:
    """Requests and tokens per second."""
    totals = feed.view.totals
    known = feed.view.server is not None
    spark = max(4, min(40, (width - 44) // 2))
    row: list[Span] = []
    for label, history, value, size in (
        ("req/s", feed.requests, totals.requests_per_s, 7),
        ("tok/s", feed.tokens, totals.tokens_per_s, 8),
    ):
        number = text.rate(value) if known else look.glyphs.none
        row += [
            Span(f" {label} ", "muted"),
            Span(sparkline(history.last(spark), spark, look.glyphs), "accent"),
            Span(f" {number.ljust(size)}  "),
        ]
    return tuple(row)


def recent_rows(happenings: tuple[Happening, ...], look: Look, width: int, room: int) -> list[Row]:
    """The newest first."""
    shown = [event for event in reversed(happenings) if is_told(event)]
    return [_recent_row(event, look, width) for event in shown[: max(room, 0)]]


def is_told(event: Happening) -> bool:
    """Swaps, and transitions into a state that lasts."""
    return isinstance(event, Swapped) or event.after in _SHOWN_STATES


def _recent_row(event: Happening, look: Look, width: int) -> Row:
    at = Span(f" {look.time(event.at)} ", "muted")
    if isinstance(event, Swapped):
        mark = Span(f"{look.glyphs.swap} ", "accent")
        told = _swap_text(event)
    else:
        mark = Span(f"{look.glyphs.state(event.after)} ", state_style(event.after))
        told = _transition_text(event)
    room = width - len(at.text) - len(mark.text) - 1
    return (at, mark, Span(shorten(told, room, ellipsis=look.glyphs.ellipsis)))


def _swap_text(event: Swapped) -> str:
    model = sanitize_line(event.model)
    gone = ", ".join(sanitize_line(name) for name in event.evicted)
    return f"{model} loaded in the place of {gone} ({text.clock_span(event.duration_s)})"


def _transition_text(event: Transition) -> str:
    reason = sanitize_line(event.reason)
    told = f"{sanitize_line(event.model)} {event.after.value}"
    return f"{told}: {reason}" if reason else told
