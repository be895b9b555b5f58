"""Asking where the answers of a batch go, and fetching them."""

from collections.abc import Iterable
from pathlib import Path

from textual import on, work
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from appliance.protocol.batches import BatchProgress
from tui.client.api import ClientError
from tui.client.download import free_path, path_of, save
from tui.client.session import Session
from tui.dialogs.dialog import Dialog, button, fact
from tui.text import batch_words as words
from tui.text.format import count, size
from tui.text.sanitize import sanitize


class SaveDialog(Dialog[str]):
    """Saves the output file under a name that is free; the result says where it is."""

    def __init__(self, session: Session, progress: BatchProgress, directory: Path) -> None:
        super().__init__(f"Save answers of {words.short_id(progress)}", is_ascii=session.ascii)
        self._session = session
        self._progress = progress
        self._directory = directory
        counts = progress.batch.request_counts
        self._answers = f"{count(counts.completed)} of {count(counts.total)} answers"

    def compose_body(self) -> Iterable[Widget]:
        """What it is, and the name to change."""
        yield fact(f"{self._answers}, to a file on this machine:")
        target = free_path(self._directory, f"{words.short_id(self._progress)}_answers.jsonl")
        entry = Input(str(target), id="path", select_on_focus=False)
        # A blinking cursor alone costs two kilobytes a second over SSH.
        entry.cursor_blink = False
        yield entry
        yield fact("", classes="error", id="answer")

    def compose_buttons(self) -> Iterable[Widget]:
        """Do it or not."""
        yield button("Save", "save")
        yield button("Close", "close")

    def on_mount(self) -> None:
        """The name is what may be changed."""
        self.query_one("#path", Input).focus()

    @on(Input.Submitted, "#path")
    @on(Button.Pressed, "#save")
    def confirm(self, event: Input.Submitted | Button.Pressed) -> None:
        """Fetch it."""
        event.stop()
        if not self.query_one("#save", Button).disabled:
            self._lock(is_locked=True)
            self._tell("", is_error=False)
            self._save(self.query_one("#path", Input).value)

    @work(exclusive=True)
    async def _save(self, text: str) -> None:
        try:
            target = path_of(text)
            client = await self._session.client()
            pieces = client.file_content(self._progress.batch.output_file_id or "")
            await save(
                pieces, target, lambda done: self._tell(f"{size(done)} so far", is_error=False)
            )
        except ClientError as error:
            self._lock(is_locked=False)
            self._tell(f"{error.message}\n{error.hint}".strip(), is_error=True)
            self.query_one("#path", Input).focus()
            return
        self.dismiss(f"{self._answers} in {target}")

    def _lock(self, *, is_locked: bool) -> None:
        self.query_one("#save", Button).disabled = is_locked
        self.query_one("#path", Input).disabled = is_locked
        if is_locked:
            self.query_one("#close", Button).focus()

    def _tell(self, text: str, *, is_error: bool) -> None:
        answer = self.query_one("#answer", Static)
        answer.set_class(is_error, "error")
        answer.update(sanitize(text))
