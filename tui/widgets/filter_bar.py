"""The line where a filter is typed."""

from textual import events, on
from textual.app import ComposeResult
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Label


class FilterBar(Widget):
    """Opens with `/`; each keystroke filters, Enter keeps, Esc clears."""

    class Changed(Message):
        """Another filter text."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Closed(Message):
        """Typing ended."""

        def __init__(self, text: str | None = None) -> None:
            super().__init__()
            self.text = text
            """What was entered; None: left without."""

    def compose(self) -> ComposeResult:
        """A prompt, the text, how it works."""
        yield Label(" / ")
        entry = Input(id="filter-input", select_on_focus=True)
        # A blinking cursor alone costs two kilobytes a second over SSH.
        entry.cursor_blink = False
        yield entry
        yield Label("regex, !x inverts, Esc clears ", id="filter-note", markup=False)

    def open(self) -> None:
        """Show and focus; the last text is still there."""
        self.add_class("-open")
        self.query_one(Input).focus()

    def clear(self) -> None:
        """Forget the text."""
        self.query_one(Input).value = ""

    def close(self) -> None:
        """Hide."""
        self.remove_class("-open")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.has_class("-open"):
            self.post_message(self.Changed(event.value))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Closed(event.value))

    def on_key(self, event: events.Key) -> None:
        """Esc leaves the text box first."""
        if event.key == "escape":
            event.stop()
            self.post_message(self.Closed())
