"""Screen 1: devices, models, loads, activity and alerts."""

import asyncio
import shlex
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from appliance.protocol.engines import LogWindow
from appliance.protocol.models import Model
from tui.client import log_reader
from tui.client.session import Session
from tui.state.view import was_stopped
from tui.widgets.dashboard_layout import Picture, dashboard, strip_rows
from tui.widgets.intents import AskLoad, AskUnload, OpenDetails, OpenLogs, ShowCommand
from tui.widgets.key_bar import KeyBar
from tui.widgets.line_panel import LinePanel
from tui.widgets.log_strip import KEPT, LogStrip
from tui.widgets.look import Look
from tui.widgets.model_table import sorted_models

CHANGING = frozenset({"load", "unload"})

_LISTS = Binding.Group("Lists")
_MODELS = Binding.Group("Models")


class DashboardScreen(Screen[None]):
    """Everything about the machine on one screen; the model table holds the selection."""

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
        Binding(
            "j,down", "move(1)", "down", id="list.down", show=False, group=_LISTS,
            tooltip="Next row",
        ),
        Binding(
            "k,up", "move(-1)", "up", id="list.up", show=False, group=_LISTS,
            tooltip="Previous row",
        ),
        Binding(
            "ctrl+d,pagedown", "move(10)", "half page down", id="list.page_down", show=False,
            group=_LISTS, tooltip="Ten rows down",
        ),
        Binding(
            "ctrl+u,pageup", "move(-10)", "half page up", id="list.page_up", show=False,
            group=_LISTS, tooltip="Ten rows up",
        ),
        Binding(
            "g,home", "move(-100000)", "first", id="list.first", show=False, group=_LISTS,
            tooltip="First row",
        ),
        Binding(
            "G,end", "move(100000)", "last", id="list.last", show=False, group=_LISTS,
            tooltip="Last row",
        ),
    ]  # fmt: skip

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._selected: str | None = None
        self._picture = Picture()
        self._strip = LogStrip()

    def compose(self) -> ComposeResult:
        """One panel for all rows, and the keys."""
        yield LinePanel(id="dashboard")
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
        panel = self.query_one("#dashboard", LinePanel)
        width, height = panel.size
        if not width:
            return
        session = self._session
        self._keep_selection()
        look = Look(
            glyphs=session.glyphs,
            clock=session.clock,
            width=width,
            height=height,
            can_change=session.may_change,
            readonly=session.readonly,
        )
        self._follow_strip(look)
        strip = self._strip
        self._picture = dashboard(session.feed, look, self._selected, session.target, strip)
        panel.show(self._picture.rows, dim=not session.feed.connection.is_current)

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
        models = sorted_models(self._session.feed.view)
        if not models:
            return
        position = next((i for i, m in enumerate(models) if m.id == self._selected), 0)
        self._selected = models[max(0, min(len(models) - 1, position + rows))].id
        self.paint()

    def action_details(self) -> None:
        """Details of the selected model, or another try where the link is down."""
        if not self._session.feed.connection.is_current:
            self._session.feed.retry()
        elif model := self.selected:
            self.post_message(OpenDetails(model.id))

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

    def on_line_panel_picked(self, message: LinePanel.Picked) -> None:
        """A click selects; a click on the selected row opens it."""
        model = self._picture.models.get(message.row)
        if model is None:
            return
        if model == self._selected:
            self.action_details()
            return
        self._selected = model
        self.paint()

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
