"""What screens of one painted panel share: when they are painted, and with which look."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.screen import Screen

from tui.client.session import Session
from tui.text.rows import Row
from tui.widgets.key_bar import KeyBar
from tui.widgets.line_panel import LinePanel
from tui.widgets.look import Look


class PanelScreen(Screen[None]):
    """One panel for all rows, and the keys; the panel's list holds the selection."""

    PANEL: ClassVar[str]
    """Id of the panel."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._selected: str | None = None

    def compose(self) -> ComposeResult:
        """One panel for all rows, and the keys."""
        yield LinePanel(id=self.PANEL)
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
        panel = self.query_one(f"#{self.PANEL}", LinePanel)
        width, height = panel.size
        if not width:
            return
        session = self._session
        look = Look(
            glyphs=session.glyphs,
            clock=session.clock,
            width=width,
            height=height,
            can_change=session.may_change,
            readonly=session.readonly,
        )
        panel.show(self.rows(look), dim=not session.feed.connection.is_current)

    def rows(self, look: Look) -> list[Row]:
        """The picture of now; keeps the selection on what is there."""
        raise NotImplementedError

    def picked(self, row: int) -> str | None:
        """What a row of the last picture stands for."""
        raise NotImplementedError

    def select(self, name: str) -> None:
        """Put the cursor on it."""
        self._selected = name
        self.paint()
        self.refresh_bindings()

    def move(self, names: list[str], rows: int) -> None:
        """Move the cursor in the list of `names`, as far as it goes."""
        if not names:
            return
        position = names.index(self._selected) if self._selected in names else 0
        self.select(names[max(0, min(len(names) - 1, position + rows))])

    def action_details(self) -> None:
        """Details of the selected one, or another try where the link is down."""
        if not self._session.feed.connection.is_current:
            self._session.feed.retry()
        elif self._selected is not None:
            self.open_details(self._selected)

    def open_details(self, name: str) -> None:
        """Show what is known about it."""
        raise NotImplementedError

    def on_line_panel_picked(self, message: LinePanel.Picked) -> None:
        """A click selects; a click on the selected row opens it."""
        name = self.picked(message.row)
        if name is None:
            return
        if name == self._selected:
            self.action_details()
        else:
            self.select(name)
