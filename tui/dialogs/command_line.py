"""The command lines that do what the interface does."""

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from tui.dialogs.dialog import Dialog, fact


class CommandLineDialog(Dialog[None]):
    """One line an action; `y` copies the first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "y,c", "copy", "copy", id="command.copy", group=Binding.Group("Dialogs"),
            tooltip="Copy the first command line",
        ),
    ]  # fmt: skip

    def __init__(self, commands: list[tuple[str, str]], *, is_ascii: bool = False) -> None:
        super().__init__("The same on the command line (y copies the first)", is_ascii=is_ascii)
        self._commands = commands

    def compose_body(self) -> Iterable[Widget]:
        """What, and how."""
        for what, command in self._commands:
            yield fact(f"{what:<16} {command}")

    def action_copy(self) -> None:
        """Send the first line to the terminal's clipboard."""
        self.app.copy_to_clipboard(self._commands[0][1])
        self.dismiss(None)
