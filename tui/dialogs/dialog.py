"""The frame of all dialogs: title, body, buttons."""

from collections.abc import Iterable
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Static

from tui.text.sanitize import sanitize

_Result = TypeVar("_Result")
_GROUP = Binding.Group("Dialogs")
_FRAME_ROWS = 4
"""Border, the line above the buttons, and the buttons."""


def fact(text: str, *, classes: str = "", id: str | None = None) -> Static:
    """A line or paragraph of foreign text."""
    return Static(sanitize(text), markup=False, classes=f"fact {classes}", id=id)


class Dialog(ModalScreen[_Result]):
    """Title in the border, body that scrolls, buttons at the bottom right."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape,q", "close", "close", id="dialog.close", group=_GROUP,
            tooltip="Close without doing anything",
        ),
        Binding(
            "left,h", "app.focus_previous", "previous", id="dialog.left", show=False,
            group=_GROUP, tooltip="Previous button",
        ),
        Binding(
            "right", "app.focus_next", "next", id="dialog.right", show=False, group=_GROUP,
            tooltip="Next button",
        ),
        Binding(
            "j,down", "scroll_body(1)", "down", id="dialog.down", show=False, group=_GROUP,
            tooltip="Scroll down",
        ),
        Binding(
            "k,up", "scroll_body(-1)", "up", id="dialog.up", show=False, group=_GROUP,
            tooltip="Scroll up",
        ),
    ]  # fmt: skip

    def __init__(self, title: str, *, is_ascii: bool = False) -> None:
        super().__init__(classes="-ascii" if is_ascii else "")
        self._title = sanitize(title)

    def compose(self) -> ComposeResult:
        """The frame around what subclasses give."""
        with Vertical(id="dialog") as frame:
            with VerticalScroll(id="body", can_focus=False):
                yield from self.compose_body()
            with Horizontal(id="buttons"):
                yield from self.compose_buttons()
        frame.border_title = self._title.replace("[", r"\[")

    def compose_body(self) -> Iterable[Widget]:
        """What the dialog says."""
        return ()

    def compose_buttons(self) -> Iterable[Widget]:
        """What can be answered."""
        yield button("Close", "close")

    def on_resize(self) -> None:
        """The buttons stay in sight: the body scrolls within what the frame leaves."""
        room = self.size.height - _FRAME_ROWS
        self.query_one("#body", VerticalScroll).styles.max_height = max(room, 1)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Buttons named `close` close."""
        if event.button.id == "close":
            event.stop()
            self.action_close()

    def action_close(self) -> None:
        """Close without an answer."""
        self.dismiss(None)

    def action_scroll_body(self, lines: int) -> None:
        """Scroll the body."""
        self.query_one("#body", VerticalScroll).scroll_relative(y=lines, animate=False)


def button(label: str, id: str, *, disabled: bool = False) -> Button:
    """A one-line button."""
    return Button(label, id=id, compact=True, disabled=disabled)
