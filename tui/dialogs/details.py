"""What is known about a model, and why it failed."""

from collections.abc import Iterable
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Button, Static

from appliance.protocol.engines import Failure, LogWindow
from appliance.protocol.models import Model
from tui.client.api import ClientError
from tui.client.session import Session
from tui.dialogs.dialog import Dialog, button, fact
from tui.text.fit import shorten
from tui.text.sanitize import sanitize_line
from tui.text.words import CAUSES, failure_line
from tui.widgets.intents import OpenLogs
from tui.widgets.look import Look
from tui.widgets.model_detail import detail_text

_LINES_BEFORE = 3
_LINES = 8
_WIDTH = 84
_FRAME = 6
"""Border, padding and scrollbar."""


class DetailsDialog(Dialog[None]):
    """Cause, hint and last lines of a failure; else the facts."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "l", "logs", "log", id="details.logs", group=Binding.Group("Dialogs"),
            tooltip="Open the log at the failing line",
        ),
    ]  # fmt: skip

    def __init__(self, session: Session, model: Model) -> None:
        self._is_failure = model.failure is not None
        what = "failed" if self._is_failure else "details"
        super().__init__(f"{sanitize_line(model.id)}: {what}", is_ascii=session.ascii)
        self._session = session
        self._model = model

    def compose_body(self) -> Iterable[Widget]:
        """The failure first, for it is what people look for."""
        look = Look(glyphs=self._session.glyphs, clock=self._session.clock, width=80, height=24)
        if failure := self._model.failure:
            yield from failure_facts(self._model, failure, look)
            yield Vertical(id="log-part", classes="fact")
            return
        engine = self._session.feed.view.engines.get(self._model.engine_id or "")
        for label, value in detail_text(self._model, engine, look):
            yield fact(f"{label:<7} {value}")

    def compose_buttons(self) -> Iterable[Widget]:
        """The log is one key away."""
        yield button("Log", "logs")
        yield button("Close", "close")

    def on_mount(self) -> None:
        """Enter opens the log."""
        self.query_one("#logs" if self._is_failure else "#close", Button).focus()
        if self._model.failure is not None:
            self._show_log(self._model.failure)

    @on(Button.Pressed, "#logs")
    def open_log(self, event: Button.Pressed) -> None:
        """The same as the key."""
        event.stop()
        self.action_logs()

    def action_logs(self) -> None:
        """Open the log at the failing line."""
        line = self._model.failure.log_line if self._model.failure else None
        self.app.post_message(OpenLogs(self._model.id, line))
        self.dismiss(None)

    @work(exclusive=True)
    async def _show_log(self, failure: Failure) -> None:
        """The lines around the one that says why; else the last ones that are known."""
        title, lines = "last lines of its log:", failure.last_lines
        first = 0
        if failure.log_line is not None and (window := await self._window(failure)):
            title, lines = f"line {failure.log_line} of its log says why:", window.lines
            first = window.first_line
        if not lines:
            return
        part = self.query_one("#log-part", Vertical)
        await part.mount(fact(f"\n{title}", classes="muted"))
        for number, line in enumerate(lines, start=first):
            says_why = bool(first) and number == failure.log_line
            await part.mount(self._log_fact(line, says_why=says_why))

    async def _window(self, failure: Failure) -> LogWindow | None:
        engine = failure.engine_id or self._model.engine_id or self._model.id
        line = failure.log_line or 1
        try:
            client = await self._session.client()
            window = await client.log_window(engine, max(1, line - _LINES_BEFORE), _LINES)
        except ClientError:
            return None
        last = window.first_line + len(window.lines) - 1
        return window if window.first_line <= line <= last else None

    def _log_fact(self, line: str, *, says_why: bool) -> Static:
        """A line of the log: the one that matters in full, the others cut."""
        glyphs = self._session.glyphs
        mark = f"{glyphs.cursor} " if says_why else "  "
        text = sanitize_line(line)
        if not says_why:
            room = min(_WIDTH, self.size.width) - _FRAME - len(mark)
            text = shorten(text, max(room, 1), ellipsis=glyphs.ellipsis)
        return fact(mark + text, classes="error" if says_why else "")


def failure_facts(model: Model, failure: Failure, look: Look) -> Iterable[Widget]:
    """A failure for a person."""
    yield fact(failure.message, classes="error")
    if failure.hint:
        yield fact(failure.hint, classes="good")
    yield fact(f"model in {sanitize_line(model.settings.path)}")
    retry = "the next request or L tries again"
    if failure.retry_at is None:
        retry = "L tries again"
    elif failure.retry_at > look.clock.now():
        retry = f"requests try again after {look.time(failure.retry_at)}, L now"
    dot = look.glyphs.dot
    times = f"attempt {failure.attempts} {dot} {retry}"
    told = f"{CAUSES[failure.cause]} {dot} {look.time(failure.at)} {dot} {times}"
    yield fact(told, classes="muted")
    first = model.first_failure
    if first is not None and failure_line(first) != failure_line(failure):
        yield from _first_facts(first, failure, look)


def _first_facts(first: Failure, newest: Failure, look: Look) -> Iterable[Widget]:
    """What the series began with: the newest failure may only follow from it."""
    yield fact(f"\nfailed first at {look.time(first.at)}, {failure_line(first)}", classes="error")
    if first.hint and first.hint != newest.hint:
        yield fact(first.hint, classes="good")
    if first.engine_id is not None:
        line = "" if first.log_line is None else f"line {first.log_line} of "
        log = f"appliance logs {sanitize_line(first.engine_id)}"
        yield fact(f"{line}its log: {log}", classes="muted")
