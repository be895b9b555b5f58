"""What is known about a batch, and asking before it is held, ended or tried again."""

from collections.abc import Iterable

from textual import on, work
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Button, Static

from appliance.protocol.batches import BatchProgress
from tui.client.api import ClientError
from tui.client.session import Session
from tui.dialogs.dialog import Dialog, button, fact
from tui.text import batch_words as words
from tui.text.format import count
from tui.widgets.batch_table import detail_facts
from tui.widgets.intents import BatchAction
from tui.widgets.look import Look

_MOST_LINES = 20
_NAMES: dict[BatchAction, str] = {
    "pause": "Pause", "resume": "Resume", "cancel": "Cancel batch", "retry": "Retry",
}  # fmt: skip


class BatchDialog(Dialog[None]):
    """Its facts; what is wrong with its file, or its first lines that failed."""

    def __init__(self, session: Session, progress: BatchProgress) -> None:
        super().__init__(words.short_id(progress), is_ascii=session.ascii)
        self._session = session
        self._progress = progress

    def compose_body(self) -> Iterable[Widget]:
        """Facts first: they are here already."""
        progress = self._progress
        batch, glyphs = progress.batch, self._session.glyphs
        look = Look(glyphs=glyphs, clock=self._session.clock, width=80, height=24)
        yield _line("id", batch.id)
        state, _ = words.status(progress, glyphs)
        yield _line("status", f"{state} {words.percent(progress, glyphs)} {words.done(progress)}")
        yield _line("model", words.models(progress, glyphs))
        for label, value, style in detail_facts(progress, look):
            if label != "problem" or batch.errors is None:
                yield _line(label, value, style)
        yield _line("input", batch.input_file_id)
        if batch.output_file_id:
            yield _line("output", batch.output_file_id)
        if batch.error_file_id:
            yield _line("errors", batch.error_file_id)
        if batch.errors is not None:
            errors = [words.error_line(each) for each in batch.errors.data]
            yield from _lines("what is wrong with its file:", errors)
        yield Vertical(id="failures", classes="fact")

    def on_mount(self) -> None:
        """Then what the server has to look up."""
        self.query_one("#close", Button).focus()
        self._show_failures()

    @work(exclusive=True)
    async def _show_failures(self) -> None:
        try:
            client = await self._session.client()
            failures = await client.batch_failures(self._progress.batch.id)
        except ClientError as error:
            told = [fact(f"{error.message}\n{error.hint}".strip(), classes="error")]
        else:
            told = _lines("lines that failed:", [words.failure_line(each) for each in failures])
        await self.query_one("#failures", Vertical).mount_all(told)


class BatchActionDialog(Dialog[BatchProgress]):
    """Says what it means; does it on confirmation and stays open when that fails."""

    def __init__(self, session: Session, progress: BatchProgress, action: BatchAction) -> None:
        title = f"{action.capitalize()} {words.short_id(progress)}"
        super().__init__(title, is_ascii=session.ascii)
        self._session = session
        self._progress = progress
        self._action: BatchAction = action

    def compose_body(self) -> Iterable[Widget]:
        """What it means now."""
        glyphs = self._session.glyphs
        yield _line("model", words.models(self._progress, glyphs))
        done = f"{words.done(self._progress)} {words.percent(self._progress, glyphs)}"
        yield _line("done", done)
        yield fact(consequence(self._progress, self._action), classes="warn")
        yield fact("", classes="error", id="answer")

    def compose_buttons(self) -> Iterable[Widget]:
        """Do it or not."""
        yield button(_NAMES[self._action], "act")
        yield button("Close", "close")

    def on_mount(self) -> None:
        """Confirming takes one key, but for what cannot be undone."""
        is_safe = self._action != "cancel"
        self.query_one("#act" if is_safe else "#close", Button).focus()

    @on(Button.Pressed, "#act")
    def confirm(self, event: Button.Pressed) -> None:
        """Do it."""
        event.stop()
        self.query_one("#act", Button).disabled = True
        self._act()

    @work(exclusive=True)
    async def _act(self) -> None:
        try:
            client = await self._session.client()
            if self._action == "retry":
                progress = await client.retry_batch(self._progress.batch.id)
            else:
                progress = await client.act_on_batch(self._progress.batch.id, self._action)
        except ClientError as error:
            self.query_one("#answer", Static).update(f"{error.message}\n{error.hint}".strip())
            self.query_one("#close", Button).focus()
            return
        self.dismiss(progress)


def consequence(progress: BatchProgress, action: BatchAction) -> str:
    """What a person should know before."""
    counts = progress.batch.request_counts
    left = counts.total - counts.completed - counts.failed
    if action == "cancel":
        ran = f"{count(left)} lines will have no answer" if counts.total else "nothing has run"
        return f"For good: {ran}; answers that are there can be fetched."
    if action == "pause":
        return (
            f"Lines that run ({progress.in_flight}) end; no further ones start. Its time goes on."
        )
    if action == "retry":
        # Those that never ran, because it ended early, are not counted as failed.
        without = counts.total - counts.completed
        lines = "1 line" if without == 1 else f"{count(without)} lines"
        return f"{lines} without an answer in a new batch; this one stays as it is."
    return f"{count(left)} lines go on."


def _line(label: str, value: str, style: str = "") -> Static:
    return fact(f"{label:<8} {value}", classes=style if style in {"warn", "error"} else "")


def _lines(title: str, lines: list[str]) -> list[Static]:
    if not lines:
        return []
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    shown = [fact(f"  {each}") for each in [*lines[:_MOST_LINES], *more]]
    return [fact(f"\n{title}", classes="muted"), *shown]
