"""The list of batches, and below it how far the selected one is."""

from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.protocol.batches import BatchProgress
from tui.client.feed import Feed
from tui.state.view import View
from tui.text import batch_words as words
from tui.text.fit import fit, fit_right, shorten, shorten_middle
from tui.text.format import count
from tui.text.glyphs import Glyphs
from tui.text.rows import Row, Span, crop_row
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look, note_row, rule_row
from tui.widgets.progress_row import bar_spans
from tui.widgets.status_line import banner_rows, status_row

_ID = 14
_STATUS = 13
_NARROW_BAR = 20
_WIDE_BAR = 40
_BARS_FROM = 100
_DETAIL_FROM_ROWS = 18


@dataclass(frozen=True)
class _Column:
    head: str
    width: int
    cell: Callable[[BatchProgress, Glyphs], str]
    least: int
    """Width of the list from which it is shown."""


@dataclass(kw_only=True)
class BatchPicture:
    """Rows to paint, and which of them stand for a batch."""

    rows: list[Row] = field(default_factory=list)
    batches: dict[int, str] = field(default_factory=dict)


def sorted_batches(view: View) -> list[BatchProgress]:
    """The open ones first, each part newest first."""
    newest = reversed(list(view.batches.values()))
    return sorted(newest, key=lambda each: each.batch.status.is_final)


def batches_picture(feed: Feed, look: Look, selected: str | None, target: str) -> BatchPicture:
    """The whole screen without the key bar."""
    picture = BatchPicture(rows=[status_row(feed, look, target)])
    picture.rows += banner_rows(feed.connection, look, target)
    batches = sorted_batches(feed.view)
    chosen = next((each for each in batches if each.batch.id == selected), None)
    detail = _detail_rows(chosen, look) if chosen and look.height >= _DETAIL_FROM_ROWS else []
    _add_list(picture, batches, look, selected, look.height - len(picture.rows) - len(detail))
    if not batches:
        known = feed.view.server is not None
        told = "No batches yet. `appliance batch submit <file>` starts one."
        picture.rows.append(note_row(told if known else look.glyphs.none))
    picture.rows += [()] * (look.height - len(detail) - len(picture.rows))
    picture.rows += detail
    del picture.rows[look.height :]
    return picture


def _add_list(
    picture: BatchPicture, batches: list[BatchProgress], look: Look, selected: str | None, room: int
) -> None:
    fits = max(1, room - 2)
    position = next((i for i, each in enumerate(batches) if each.batch.id == selected), 0)
    first = max(0, min(position - fits // 2, len(batches) - fits))
    shown = batches[first : first + fits]
    still = sum(not each.batch.status.is_final for each in batches)
    title = f"Batches ({still} open)" if still else "Batches"
    right = (
        f"{first + 1}-{first + len(shown)} of {len(batches)}" if len(shown) < len(batches) else ""
    )
    picture.rows.append(rule_row(look, look.width, title, right))
    picture.rows.append(_head(look))
    for each in shown:
        picture.batches[len(picture.rows)] = each.batch.id
        picture.rows.append(_row(each, look, selected=each.batch.id == selected))


def _head(look: Look) -> Row:
    row = [Span(f"   {fit('BATCH', _ID)} {fit('MODEL', _model_width(look))}", "head")]
    row.append(Span(f" {fit('STATUS', _STATUS)}", "head"))
    if look.width >= _BARS_FROM:
        row.append(Span(" " * (_NARROW_BAR + 1)))
    row += [Span(f" {fit_right(each.head, each.width)}", "head") for each in _columns(look)]
    return crop_row(tuple(row), look.width)


def _row(progress: BatchProgress, look: Look, *, selected: bool) -> Row:
    glyphs = look.glyphs
    width = _model_width(look)
    name = shorten_middle(words.models(progress, glyphs), width, ellipsis=glyphs.ellipsis)
    state, style = words.status(progress, glyphs)
    row = [
        Span(f" {glyphs.cursor} " if selected else "   ", "cursor"),
        Span(fit(words.short_id(progress), _ID), "selected" if selected else "name"),
        Span(f" {fit(name, width)}"),
        Span(f" {fit(state, _STATUS)}", style),
    ]
    if look.width >= _BARS_FROM:
        row += [Span(" "), *bar_spans(words.done_ratio(progress), _NARROW_BAR, glyphs)]
    for column in _columns(look):
        cell = fit_right(column.cell(progress, glyphs), column.width)
        has_failed = column.head == "FAILED" and progress.batch.request_counts.failed
        row.append(Span(f" {cell}", "error" if has_failed else ""))
    return crop_row(tuple(row), look.width)


def _failed(progress: BatchProgress, _glyphs: Glyphs) -> str:
    return count(progress.batch.request_counts.failed)


# Left out from the end while the width shrinks.
_COLUMNS = (
    _Column("", 4, words.percent, 0),
    _Column("DONE", 13, lambda progress, _: words.done(progress), 56),
    _Column("FAILED", 6, _failed, 64),
    _Column("LEFT", 7, words.left, 72),
    _Column("LINES/S", 7, words.rate, 90),
)


def _columns(look: Look) -> list[_Column]:
    return [each for each in _COLUMNS if look.width >= each.least]


def _model_width(look: Look) -> int:
    bar = _NARROW_BAR + 1 if look.width >= _BARS_FROM else 0
    taken = 3 + _ID + 1 + 1 + _STATUS + bar + sum(each.width + 1 for each in _columns(look))
    return max(8, min(look.width - taken - 1, 44))


def _detail_rows(progress: BatchProgress, look: Look) -> list[Row]:
    """The selected one: its bar, what hinders it, its figures."""
    glyphs = look.glyphs
    title = f"{words.short_id(progress)} {words.models(progress, glyphs)}"
    rows = [rule_row(look, look.width, title, "Enter details")]
    bar = _WIDE_BAR if look.width >= _BARS_FROM else _NARROW_BAR
    state, style = words.status(progress, glyphs)
    after = f" {words.percent(progress, glyphs)}  {words.done(progress)}"
    if (left := words.left(progress, glyphs)) != glyphs.none:
        estimated = " (est.)" if look.width >= _BARS_FROM else ""
        after += f"  {words.rate(progress, glyphs)} lines/s  {left} left{estimated}"
    ratio = words.done_ratio(progress)
    rows.append((Span(f" {state} ", style), *bar_spans(ratio, bar, glyphs), Span(after)))
    for label, value, style in detail_facts(progress, look):
        room = look.width - 10
        rows.append(
            (
                Span(f" {fit(label, 8)} ", "muted"),
                Span(shorten(value, room, ellipsis=glyphs.ellipsis), style),
            )
        )
    return [crop_row(row, look.width) for row in rows]


def detail_facts(progress: BatchProgress, look: Look) -> list[tuple[str, str, str]]:
    """Label, value and style of what is known beyond the row."""
    batch, counts, dot = progress.batch, progress.batch.request_counts, look.glyphs.dot
    facts = []
    if (trouble := words.trouble(progress)) is not None:
        facts.append(("problem", trouble, "error" if batch.status.is_final else "warn"))
    lines = f"{count(counts.completed)} answered {dot} {count(counts.failed)} failed"
    if not batch.status.is_final:
        lines += f" {dot} {progress.in_flight} running"
    if progress.retried:
        lines += f" {dot} {count(progress.retried)} tried again"
    facts.append(("lines", f"{lines} {dot} {batch.endpoint}", ""))
    facts.append(("tokens", words.tokens(progress, look.glyphs), ""))
    facts.append(("time", _times(progress, look), ""))
    if batch.metadata:
        told = " ".join(f"{key}={value}" for key, value in batch.metadata.items())
        facts.append(("metadata", sanitize_line(told), ""))
    return facts


def _times(progress: BatchProgress, look: Look) -> str:
    batch, dot = progress.batch, look.glyphs.dot
    told = f"made {look.time(words.moment(batch.created_at))}"
    ended = words.ended_at(progress)
    if ended is not None:
        told += f" {dot} ended {look.time(words.moment(ended))}"
    elif batch.expires_at is not None:
        told += f" {dot} expires {_day_and_time(batch.expires_at, look)}"
    if progress.waited_s:
        told += f" {dot} waited {progress.waited_s:.0f} s for engines"
    return told


def _day_and_time(seconds: int, look: Look) -> str:
    return f"{look.clock.local(words.moment(seconds)):%Y-%m-%d %H:%M:%S}"
