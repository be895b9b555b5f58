"""Screen 1: devices, models, loads, activity and alerts."""

import asyncio
import shlex
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from appliance.protocol.engines import LogWindow
from appliance.protocol.models import Model
from tui.client import log_reader
from tui.client.session import Session
from tui.screens.list_keys import list_keys
from tui.screens.panel_screen import PanelScreen
from tui.state.view import was_stopped
from tui.text.rows import Row
from tui.widgets.dashboard_layout import Picture, dashboard, strip_rows
from tui.widgets.intents import AskLoad, AskUnload, OpenDetails, OpenLogs, ShowCommand
from tui.widgets.log_strip import KEPT, LogStrip
from tui.widgets.look import Look
from tui.widgets.model_table import sorted_models

CHANGING = frozenset({"load", "unload"})

_MODELS = Binding.Group("Models")


class DashboardScreen(PanelScreen):
    """Everything about the machine on one screen; the model table holds the selection."""

    PANEL = "dashboard"
    STRIP_DELAY_S = 0.3

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter", "details", "details", id="model.details", group=_MODELS,
            tooltip="Details of the model; why it failed and what to do",
        ),
        Binding(
            "l", "logs", "logs", id="model.logs", group=_MODELS,
            tooltip="Log of the model, at the failing line if it failed",
        ),
        Binding(
            "L", "load", "Load", id="model.load", group=_MODELS,
            tooltip="Load the model; shows the plan and asks first",
        ),
        Binding(
            "U", "unload", "Unload", id="model.unload", group=_MODELS,
            tooltip="Unload the model; asks first",
        ),
        Binding(
            "x", "command", "cmd", id="model.command", group=_MODELS,
            tooltip="The command lines that do the same",
        ),
        *list_keys("list"),
    ]  # fmt: skip

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._picture = Picture()
        self._strip = LogStrip()

    def rows(self, look: Look) -> list[Row]:
        """The picture of now; keeps the selection on a model that is there."""
        self._keep_selection()
        self._follow_strip(look)
        session = self._session
        self._picture = dashboard(session.feed, look, self._selected, session.target, self._strip)
        return self._picture.rows

    def picked(self, row: int) -> str | None:
        """The model of a row."""
        return self._picture.models.get(row)

    def on_screen_suspend(self) -> None:
        """Hidden: read no log."""
        self.workers.cancel_group(self, "strip")
        self._strip.open(None, "")

    @property
    def selected(self) -> Model | None:
        """The model under the cursor."""
        return self._session.feed.view.models.get(self._selected or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Capitals vanish where nothing may be changed."""
        return action not in CHANGING or self._session.may_change

    def action_move(self, rows: int) -> None:
        """Move the selection."""
        self.move([model.id for model in sorted_models(self._session.feed.view)], rows)

    def open_details(self, name: str) -> None:
        """Details of a model."""
        if name in self._session.feed.view.models:
            self.post_message(OpenDetails(name))

    def action_logs(self) -> None:
        """Log of the selected model."""
        if model := self.selected:
            line = model.failure.log_line if model.failure else None
            self.post_message(OpenLogs(model.id, line))

    def action_load(self) -> None:
        """Ask to load."""
        if model := self.selected:
            self.post_message(AskLoad(model.id))

    def action_unload(self) -> None:
        """Ask to unload."""
        if model := self.selected:
            self.post_message(AskUnload(model.id))

    def action_command(self) -> None:
        """The same on the command line."""
        if model := self.selected:
            name = shlex.quote(model.id)
            self.post_message(
                ShowCommand(
                    [
                        ("load", f"appliance load {name}"),
                        ("unload", f"appliance stop {name}"),
                        ("follow its log", f"appliance logs -f {name}"),
                    ]
                )
            )

    def _follow_strip(self, look: Look) -> None:
        """Read the log of the selected model where there is room for it."""
        model = (
            self.selected if strip_rows(self._session.feed.view, look) and self.is_current else None
        )
        engine = model.engine_id if model is not None else None
        name = model.id if model is not None else ""
        if (engine, name) != (self._strip.engine, self._strip.model):
            self._strip.open(engine, name)
            self._read_strip(engine)
        self._strip.set_stopped(was_stopped(self._session.feed.view.engines.get(engine or "")))

    @work(group="strip", exclusive=True)
    async def _read_strip(self, engine: str | None) -> None:
        if engine is None:
            return
        # Moving over the table should not open a stream for each row.
        await asyncio.sleep(self.STRIP_DELAY_S)

        def take(window: LogWindow) -> None:
            if engine == self._strip.engine and self._strip.take(window):
                self._session.feed.on_change()

        await log_reader.follow(self._session.client, engine, take, lambda _note: None, tail=KEPT)

    def _keep_selection(self) -> None:
        models = self._session.feed.view.models
        if self._selected not in models:
            ordered = sorted_models(self._session.feed.view)
            self._selected = ordered[0].id if ordered else None
