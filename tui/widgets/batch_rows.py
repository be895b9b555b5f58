"""Open batches on the dashboard: one line each where it is narrow, two beside the models."""

from appliance.protocol.batches import BatchProgress
from tui.state.view import View
from tui.text import batch_words as words
from tui.text.fit import fit, fit_right, shorten, shorten_middle
from tui.text.format import count
from tui.text.rows import Row, Span, row_width
from tui.widgets.batch_table import sorted_batches
from tui.widgets.look import Look, rule_row
from tui.widgets.progress_row import bar_spans

_BAR = 16
_BARS_FROM = 56
_LEFT = 8


def open_batches(view: View) -> list[BatchProgress]:
    """Those that are not over: the ones that move first, each part newest first."""
    known = [each for each in sorted_batches(view) if not each.batch.status.is_final]
    return sorted(known, key=lambda each: each.is_paused or each.eta_s is None)


def batch_section(view: View, look: Look, width: int, room: int) -> list[Row]:
    """A section with two lines for each, as many as there is room for; none without any."""
    known = open_batches(view)
    fits = (room - 1) // 2
    if not known or fits < 1:
        return []
    more = f"{len(known)} open" if len(known) > fits else ""
    rows = [rule_row(look, width, "Batches", more)]
    for each in known[:fits]:
        rows += [batch_row(each, look, width, tells_done=False), _second_row(each, look, width)]
    return rows


def batch_row(progress: BatchProgress, look: Look, width: int, *, tells_done: bool = True) -> Row:
    """Id, model, bar, percent, lines, time left."""
    glyphs = look.glyphs
    right: list[Span] = []
    if width >= _BARS_FROM:
        right += [Span(" "), *bar_spans(words.done_ratio(progress), _BAR, glyphs)]
    right.append(Span(fit_right(words.percent(progress, glyphs), 5)))
    if tells_done:
        right.append(Span(fit_right(words.done(progress), 15)))
    left = words.left(progress, glyphs)
    if left == glyphs.none:
        state, style = words.status(progress, glyphs)
        right.append(Span(f" {fit(state, 13)}", style))
    else:
        right.append(Span(fit_right(left, _LEFT), "muted"))
    name = Span(f" {words.short_id(progress)} ", "name")
    room = max(width - row_width((name, *right)) - 1, 0)
    model = shorten_middle(words.models(progress, glyphs), room, ellipsis=glyphs.ellipsis)
    return (name, Span(fit(model, room)), *right)


def _second_row(progress: BatchProgress, look: Look, width: int) -> Row:
    trouble = words.trouble(progress)
    if trouble is not None:
        return (Span(f"   {shorten(trouble, width - 4, ellipsis=look.glyphs.ellipsis)}", "warn"),)
    dot = look.glyphs.dot
    told = words.done(progress)
    if failed := progress.batch.request_counts.failed:
        told += f" {dot} {count(failed)} failed"
    if (rate := words.rate(progress, look.glyphs)) != look.glyphs.none:
        told += f" {dot} {rate} lines/s"
    return (Span(f"   {shorten(told, width - 4, ellipsis=look.glyphs.ellipsis)}", "muted"),)
