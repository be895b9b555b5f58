"""Screen 4: batches, how far they are; holding, ending and repeating them, and their answers."""

import shlex
from typing import ClassVar

from textual.binding import Binding, BindingType

from appliance.protocol.batches import BatchProgress
from tui.client.session import Session
from tui.screens.list_keys import list_keys
from tui.screens.panel_screen import PanelScreen
from tui.text.batch_words import can_retry, is_paused, short_id
from tui.text.rows import Row
from tui.widgets.batch_table import BatchPicture, batches_picture, sorted_batches
from tui.widgets.intents import AskBatch, BatchAction, OpenBatch, SaveAnswers, ShowCommand
from tui.widgets.look import Look

_CHANGING = frozenset({"pause", "cancel", "retry", "save"})
_BATCHES = Binding.Group("Batches")


class BatchesScreen(PanelScreen):
    """The list holds the selection; what is below it is of the selected batch."""

    PANEL = "batches"

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
            "R", "retry", "Retry", id="batch.retry", group=_BATCHES,
            tooltip="A new batch of the lines without an answer; asks first",
        ),
        Binding(
            "o", "save", "output", id="batch.save", group=_BATCHES,
            tooltip="Save the answers to a file here; asks where",
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
        super().__init__(session)
        self._picture = BatchPicture()

    def rows(self, look: Look) -> list[Row]:
        """The picture of now; keeps the selection on a batch that is there."""
        session = self._session
        if self._selected not in session.feed.view.batches:
            batches = sorted_batches(session.feed.view)
            self._selected = batches[0].batch.id if batches else None
        self._picture = batches_picture(session.feed, look, self._selected, session.target)
        return self._picture.rows

    def picked(self, row: int) -> str | None:
        """The batch of a row."""
        return self._picture.batches.get(row)

    @property
    def selected(self) -> BatchProgress | None:
        """The batch under the cursor."""
        return self._session.feed.view.batches.get(self._selected or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys vanish where there is nothing that they may do."""
        if action not in _CHANGING:
            return True
        chosen = self.selected
        if chosen is None or not self._session.may_change:
            return False
        batch = chosen.batch
        if action == "retry":
            return can_retry(chosen)
        if action == "save":
            return batch.output_file_id is not None
        return not batch.status.is_final

    def action_move(self, rows: int) -> None:
        """Move the selection."""
        self.move([each.batch.id for each in sorted_batches(self._session.feed.view)], rows)

    def open_details(self, name: str) -> None:
        """Details of a batch."""
        self.post_message(OpenBatch(name))

    def action_pause(self) -> None:
        """Ask to pause, or to resume."""
        if (chosen := self.selected) is not None:
            action: BatchAction = "resume" if is_paused(chosen) else "pause"
            self.post_message(AskBatch(chosen.batch.id, action))

    def action_cancel(self) -> None:
        """Ask to cancel."""
        if self._selected is not None:
            self.post_message(AskBatch(self._selected, "cancel"))

    def action_retry(self) -> None:
        """Ask to try its failed lines again."""
        if self._selected is not None:
            self.post_message(AskBatch(self._selected, "retry"))

    def action_save(self) -> None:
        """Ask where its answers go."""
        if self._selected is not None:
            self.post_message(SaveAnswers(self._selected))

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
