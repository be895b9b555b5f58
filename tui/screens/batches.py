"""Screen 4: batches, how far they are, and holding or ending them."""

import shlex
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from appliance.protocol.batches import BatchProgress
from tui.client.session import Session
from tui.screens.list_keys import list_keys
from tui.text.batch_words import is_paused, short_id
from tui.widgets.batch_table import BatchPicture, batches_picture, sorted_batches
from tui.widgets.intents import AskBatch, BatchAction, OpenBatch, ShowCommand
from tui.widgets.key_bar import KeyBar
from tui.widgets.line_panel import LinePanel
from tui.widgets.look import Look

_CHANGING = frozenset({"pause", "cancel"})
_BATCHES = Binding.Group("Batches")


class BatchesScreen(Screen[None]):
    """The list holds the selection; what is below it is of the selected batch."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter", "details", "details", id="batch.details", group=_BATCHES,
            tooltip="Details of the batch; the first lines that failed",
        ),
        Binding(
            "P", "pause", "Pause", id="batch.pause", group=_BATCHES,
            tooltip="Pause the batch, or resume it; asks first",
        ),
        Binding(
            "C", "cancel", "Cancel", id="batch.cancel", group=_BATCHES,
            tooltip="Cancel the batch; asks first",
        ),
        Binding(
            "x", "command", "cmd", id="batch.command", group=_BATCHES,
            tooltip="Command lines: fetch, retry, watch",
        ),
        *list_keys("batches"),
        Binding(
            "escape", "back", "back", id="batch.back", show=False, group=_BATCHES,
            tooltip="Back to the dashboard",
        ),
    ]  # fmt: skip

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._selected: str | None = None
        self._picture = BatchPicture()

    def compose(self) -> ComposeResult:
        """One panel for all rows, and the keys."""
        yield LinePanel(id="batches")
        yield KeyBar()

    def on_mount(self) -> None:
        """The first picture."""
        self.paint()

    def on_resize(self) -> None:
        """Another size, another layout."""
        self.call_after_refresh(self.paint)

    def on_screen_resume(self) -> None:
        """What changed while another screen was shown."""
        self.call_after_refresh(self.paint)

    def paint(self) -> None:
        """Draw what changed."""
        panel = self.query_one("#batches", LinePanel)
        width, height = panel.size
        if not width:
            return
        session = self._session
        if self._selected not in session.feed.view.batches:
            batches = sorted_batches(session.feed.view)
            self._selected = batches[0].batch.id if batches else None
        look = Look(
            glyphs=session.glyphs,
            clock=session.clock,
            width=width,
            height=height,
            can_change=session.may_change,
            readonly=session.readonly,
        )
        self._picture = batches_picture(session.feed, look, self._selected, session.target)
        panel.show(self._picture.rows, dim=not session.feed.connection.is_current)

    @property
    def selected(self) -> BatchProgress | None:
        """The batch under the cursor."""
        return self._session.feed.view.batches.get(self._selected or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Capitals vanish where there is nothing that may be changed."""
        if action not in _CHANGING:
            return True
        is_open = self.selected is not None and not self.selected.batch.status.is_final
        return is_open and self._session.may_change

    def action_move(self, rows: int) -> None:
        """Move the selection."""
        ids = [each.batch.id for each in sorted_batches(self._session.feed.view)]
        if not ids:
            return
        position = ids.index(self._selected) if self._selected in ids else 0
        self._select(ids[max(0, min(len(ids) - 1, position + rows))])

    def action_details(self) -> None:
        """Details of the selected batch, or another try where the link is down."""
        if not self._session.feed.connection.is_current:
            self._session.feed.retry()
        elif self._selected is not None:
            self.post_message(OpenBatch(self._selected))

    def action_pause(self) -> None:
        """Ask to pause, or to resume."""
        if (chosen := self.selected) is not None:
            action: BatchAction = "resume" if is_paused(chosen) else "pause"
            self.post_message(AskBatch(chosen.batch.id, action))

    def action_cancel(self) -> None:
        """Ask to cancel."""
        if self._selected is not None:
            self.post_message(AskBatch(self._selected, "cancel"))

    def action_command(self) -> None:
        """The same on the command line, and what only it can do."""
        if (chosen := self.selected) is None:
            return
        name = shlex.quote(short_id(chosen))
        fetch = f"appliance batch fetch {name} --output answers.jsonl --errors errors.jsonl"
        self.post_message(
            ShowCommand(
                [
                    ("fetch answers", fetch),
                    ("retry failed", f"appliance batch retry {name}"),
                    ("follow it", f"appliance batch watch {name}"),
                    ("cancel", f"appliance batch cancel {name}"),
                ]
            )
        )

    async def action_back(self) -> None:
        """To the dashboard."""
        await self.app.switch_mode("dashboard")

    def on_line_panel_picked(self, message: LinePanel.Picked) -> None:
        """A click selects; a click on the selected row opens it."""
        batch_id = self._picture.batches.get(message.row)
        if batch_id is None:
            return
        if batch_id == self._selected:
            self.action_details()
        else:
            self._select(batch_id)

    def _select(self, batch_id: str) -> None:
        self._selected = batch_id
        self.paint()
        self.refresh_bindings()
