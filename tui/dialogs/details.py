"""What is known about a model, and why it failed."""

from collections.abc import Iterable
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Button

from appliance.protocol.engines import Failure
from appliance.protocol.models import Model
from tui.client.session import Session
from tui.dialogs.dialog import Dialog, button, fact
from tui.text.sanitize import sanitize_line
from tui.widgets.intents import OpenLogs
from tui.widgets.look import Look
from tui.widgets.model_detail import detail_text


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
            yield from failure_facts(failure, look)
            return
        for label, value in detail_text(self._model, look):
            yield fact(f"{label:<7} {value}")

    def compose_buttons(self) -> Iterable[Widget]:
        """The log is one key away."""
        yield button("Log", "logs")
        yield button("Close", "close")

    def on_mount(self) -> None:
        """Enter opens the log."""
        self.query_one("#logs" if self._is_failure else "#close", Button).focus()

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


def failure_facts(failure: Failure, look: Look) -> Iterable[Widget]:
    """A failure for a person."""
    yield fact(failure.message, classes="error")
    if failure.hint:
        yield fact(failure.hint, classes="good")
    retry = "not tried again by itself"
    if failure.retry_at is not None:
        retry = f"tried again at {look.time(failure.retry_at)}"
    cause = failure.cause.value.replace("_", " ")
    dot = look.glyphs.dot
    times = f"attempt {failure.attempts} {dot} {retry}"
    yield fact(f"{cause} {dot} {look.time(failure.at)} {dot} {times}", classes="muted")
    if failure.last_lines:
        where = f" (line {failure.log_line} says why)" if failure.log_line else ""
        yield fact(f"\nlast lines of its log{where}:", classes="muted")
        yield fact("\n".join(sanitize_line(line) for line in failure.last_lines))
