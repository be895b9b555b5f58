"""The app: modes, keys that work everywhere, and what screens ask for."""

import asyncio
import os
import signal
import termios
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.notifications import SeverityLevel
from textual.screen import Screen

from appliance.protocol.batches import BatchProgress
from appliance.protocol.models import Model
from tui.client.session import Session
from tui.commands import ApplianceCommands
from tui.dialogs.batch import BatchActionDialog, BatchDialog
from tui.dialogs.command_line import CommandLineDialog
from tui.dialogs.confirm import UnloadDialog
from tui.dialogs.details import DetailsDialog
from tui.dialogs.help import HelpDialog
from tui.dialogs.load_plan import LoadPlanDialog
from tui.dialogs.save import SaveDialog
from tui.screens.batches import BatchesScreen
from tui.screens.dashboard import DashboardScreen
from tui.screens.logs import LogsScreen
from tui.screens.panel_screen import PanelScreen
from tui.state.connection import Link
from tui.text.batch_words import short_id, status
from tui.text.clipboard import clipboard_sequence
from tui.text.sanitize import sanitize
from tui.theme import DEFAULT, THEMES
from tui.widgets.intents import (
    AskBatch,
    AskLoad,
    AskUnload,
    OpenBatch,
    OpenDetails,
    OpenLogs,
    SaveAnswers,
    ShowCommand,
)
from tui.widgets.key_bar import EVERYWHERE

if TYPE_CHECKING:
    from textual.timer import Timer


def _key(
    key: str, action: str, name: str, identifier: str, tooltip: str, *, display: str | None = None
) -> Binding:
    return Binding(
        key,
        action,
        name,
        id=f"app.{identifier}",
        tooltip=tooltip,
        group=EVERYWHERE,
        key_display=display,
    )


class ApplianceApp(App[None]):
    """One window on one appliance."""

    CSS_PATH = "tui.tcss"
    TITLE = "vLLM Appliance"
    COMMANDS: ClassVar[set[type[Provider]]] = {ApplianceCommands}  # type: ignore[assignment]
    PAINT_S = 0.5
    """The dashboard is painted at most twice a second."""

    BINDINGS: ClassVar[list[BindingType]] = [
        _key("1", "show('dashboard')", "Dash", "dashboard", "Dashboard"),
        _key("3", "show('logs')", "Logs", "logs", "Logs of the engines"),
        _key("4", "show('batches')", "Batches", "batches", "Batches and how far they are"),
        _key("question_mark,f1", "help", "help", "help", "The keys that work here", display="?"),
        _key("colon,ctrl+p", "palette", "cmd", "palette", "Find a command by name", display=":"),
        _key("r", "refresh_now", "refresh", "refresh", "Draw again; connect again if need be"),
        _key("q", "quit", "quit", "quit", "Leave; models and server go on"),
    ]

    def __init__(self, session: Session, *, theme: str = DEFAULT) -> None:
        super().__init__()
        for own in THEMES:
            self.register_theme(own)
        self.theme = theme
        self.animation_level = "none"
        self.session = session
        self._dirty = False
        self._cooling: Timer | None = None
        self.add_mode("dashboard", lambda: DashboardScreen(session))
        self.add_mode("logs", lambda: LogsScreen(session))
        self.add_mode("batches", lambda: BatchesScreen(session))

    async def on_mount(self) -> None:
        """Show the dashboard, and only then load what talks HTTP."""
        await self.switch_mode("dashboard")
        self.session.feed.on_change = self._changed
        self.call_after_refresh(self._start)
        if not self.is_headless:
            # A polite kill must leave the terminal as it was.
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self.exit)
            signal.signal(signal.SIGHUP, lambda *_: self._hang_up(loop))

    def _hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """A closed SSH session. Textual would wait for ever to write to a terminal that is gone."""
        try:
            termios.tcgetattr(0)
        except termios.error:
            os._exit(128 + signal.SIGHUP)
        loop.call_soon_threadsafe(self.exit)

    async def on_unmount(self) -> None:
        """Let go of the connections."""
        await self.session.aclose()

    def get_key_display(self, binding: Binding) -> str:
        """Keys as the key bar writes them."""
        return binding.key_display or binding.key

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Screens change only while no dialog is open."""
        if action in {"show", "palette", "help"}:
            return len(self.screen_stack) <= 1
        return True

    def copy_to_clipboard(self, text: str) -> None:
        """Send `text` to the terminal's clipboard; no answer ever comes back."""
        sequence = clipboard_sequence(text, os.environ)
        if sequence is None:
            self.say("Too long for the terminal's clipboard: mark fewer lines.", is_error=True)
            return
        self._clipboard = text
        if self._driver is not None:
            self._driver.write(sequence)
        lines = text.count("\n") + 1
        what = f"{lines} line{'s' if lines > 1 else ''}"
        self.say(f"Sent {what} to your terminal's clipboard.")

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """One message at a time: a new one takes the place of the old."""
        self.clear_notifications()
        super().notify(message, title=title, severity=severity, timeout=timeout, markup=markup)

    def say(self, message: str, *, is_error: bool = False) -> None:
        """A short message at the edge."""
        severity = "error" if is_error else "information"
        self.notify(
            sanitize(message), severity="error" if severity == "error" else "information",
            timeout=10 if is_error else 4, markup=False,
        )  # fmt: skip

    async def action_show(self, mode: str) -> None:
        """Another screen."""
        await self.switch_mode(mode)
        self._paint()

    def action_help(self) -> None:
        """The keys of this view."""
        bindings = [
            (key, active.binding)
            for key, active in self.screen.active_bindings.items()
            if active.enabled
        ]
        self.push_screen(HelpDialog(bindings, is_ascii=self.session.ascii))

    def action_palette(self) -> None:
        """The command palette."""
        self.action_command_palette()

    def action_refresh_now(self) -> None:
        """Draw everything, and connect at once where there is no link."""
        feed = self.session.feed
        if feed.connection.link not in {Link.LIVE, Link.MISMATCH}:
            feed.retry()
        self._paint()
        self.refresh(layout=True)

    @on(OpenLogs)
    async def open_logs(self, message: OpenLogs) -> None:
        """The log of a model."""
        await self.switch_mode("logs")
        screen = self.screen
        if isinstance(screen, LogsScreen):
            screen.open_model(message.model, message.line)

    @on(OpenDetails)
    def open_details(self, message: OpenDetails) -> None:
        """What is known about a model."""
        if model := self.session.feed.view.models.get(message.model):
            self.push_screen(DetailsDialog(self.session, model))

    @on(AskLoad)
    def ask_load(self, message: AskLoad) -> None:
        """The plan first, then the load."""
        if self.session.may_change:
            self.push_screen(LoadPlanDialog(self.session, message.model), self._told)

    @on(AskUnload)
    def ask_unload(self, message: AskUnload) -> None:
        """Ask first."""
        if self.session.may_change:
            self.push_screen(UnloadDialog(self.session, message.model), self._told)

    @on(OpenBatch)
    def open_batch(self, message: OpenBatch) -> None:
        """What is known about a batch."""
        if progress := self.session.feed.view.batches.get(message.batch_id):
            self.push_screen(BatchDialog(self.session, progress))

    @on(AskBatch)
    def ask_batch(self, message: AskBatch) -> None:
        """Ask first."""
        progress = self.session.feed.view.batches.get(message.batch_id)
        if progress is not None and self.session.may_change:
            dialog = BatchActionDialog(self.session, progress, message.action)
            self.push_screen(dialog, self._told_batch)

    @on(SaveAnswers)
    def save_answers(self, message: SaveAnswers) -> None:
        """Ask where."""
        progress = self.session.feed.view.batches.get(message.batch_id)
        if progress is not None and self.session.may_change:
            self.push_screen(SaveDialog(self.session, progress, Path.cwd()), self._told_saved)

    @on(ShowCommand)
    def show_command(self, message: ShowCommand) -> None:
        """The same on the command line."""
        self.push_screen(CommandLineDialog(message.commands, is_ascii=self.session.ascii))

    def screens_to_paint(self) -> Iterable[Screen[object]]:
        """The visible screens that show the feed."""
        return self.screen_stack

    def _start(self) -> None:
        self._follow()
        self.set_interval(1.0, self._tick)

    @work(group="feed", exclusive=True)
    async def _follow(self) -> None:
        await self.session.feed.run()

    def _tick(self) -> None:
        self.session.feed.tick()
        self._changed()

    def _changed(self) -> None:
        """Paint now, or at the end of the half second after the last paint."""
        if self._cooling is not None:
            self._dirty = True
            return
        if self.PAINT_S > 0:
            self._cooling = self.set_timer(self.PAINT_S, self._cooled)
        self._paint()

    def _cooled(self) -> None:
        self._cooling = None
        if self._dirty:
            self._dirty = False
            self._changed()

    def _paint(self) -> None:
        if not self.is_running:
            return
        for screen in self.screens_to_paint():
            if isinstance(screen, PanelScreen | LogsScreen) and screen.is_mounted:
                screen.paint()
        self.refresh_bindings()

    def _told(self, model: Model | None) -> None:
        if model is not None:
            self.say(f"{model.id}: {model.state.value}")

    def _told_batch(self, progress: BatchProgress | None) -> None:
        if progress is not None:
            self.say(f"{short_id(progress)}: {status(progress, self.session.glyphs)[0]}")

    def _told_saved(self, where: str | None) -> None:
        if where is not None:
            self.say(f"Saved {where}")
