"""Asking before a model is unloaded."""

from collections.abc import Iterable

from textual import on, work
from textual.widget import Widget
from textual.widgets import Button, Static

from appliance.protocol.models import Model
from tui.client.api import ClientError
from tui.client.session import Session
from tui.dialogs.dialog import Dialog, button, fact
from tui.text import format as text
from tui.text.sanitize import sanitize_line


class UnloadDialog(Dialog[Model]):
    """Says what is lost; unloads on confirmation and stays open when that fails."""

    def __init__(self, session: Session, model: str) -> None:
        super().__init__(f"Unload {sanitize_line(model)}", is_ascii=session.ascii)
        self._session = session
        self._model = model

    def compose_body(self) -> Iterable[Widget]:
        """What unloading means now."""
        model = self._session.feed.view.models.get(self._model)
        for line, style in unload_lines(model):
            yield fact(line, classes=style)
        yield fact("", classes="error", id="answer")

    def compose_buttons(self) -> Iterable[Widget]:
        """Unload or not."""
        yield button("Unload", "unload")
        yield button("Cancel", "close")

    def on_mount(self) -> None:
        """Confirming takes one key."""
        self.query_one("#unload", Button).focus()

    @on(Button.Pressed, "#unload")
    def confirm(self, event: Button.Pressed) -> None:
        """Do it."""
        event.stop()
        self.query_one("#unload", Button).disabled = True
        self._unload()

    @work(exclusive=True)
    async def _unload(self) -> None:
        try:
            client = await self._session.client()
            model = await client.unload(self._model)
        except ClientError as error:
            self.query_one("#answer", Static).update(f"{error.message}\n{error.hint}".strip())
            self.query_one("#close", Button).focus()
            return
        self.dismiss(model)


def unload_lines(model: Model | None) -> list[tuple[str, str]]:
    """What a person should know before unloading."""
    if model is None:
        return [("This model is no longer known.", "error")]
    lines = [(f"state   {model.state.value}", "")]
    if model.memory_bytes:
        lines.append((f"frees   {text.size(model.memory_bytes)}", ""))
    if model.in_flight or model.waiting:
        busy = f"{model.in_flight} requests running, {model.waiting} waiting"
        lines.append((f"now     {busy}: running ones may finish first  !", "warn"))
    if model.settings.always_on:
        lines.append(
            ("note    it is always on: the server loads it again when it restarts", "warn")
        )
    lines.append(("        The next request for it loads it again.", "muted"))
    return lines
