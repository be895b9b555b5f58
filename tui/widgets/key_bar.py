"""The bottom line: the keys that work here now."""

from textual.binding import Binding
from textual.screen import Screen

from tui.text.rows import Row, Span, row_width
from tui.widgets.line_panel import LinePanel

EVERYWHERE = Binding.Group("Everywhere")
_KEPT = frozenset({"app.help", "app.quit"})
_DROPPED_FIRST = (
    "app.refresh",
    "model.command",
    "batch.command",
    "app.palette",
    "log.wrap",
    "model.details",
    "batch.details",
    "log.previous_engine",
    "log.copy",
)
"""What a narrow bar leaves out, in this order; help lists it all the same."""
_NAMES = {
    "question_mark": "?",
    "colon": ":",
    "slash": "/",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "enter": "Enter",
    "escape": "Esc",
    "ctrl+p": "^p",
    "exclamation_mark": "!",
}


def key_name(key: str) -> str:
    """A key as it is written on the bar."""
    return _NAMES.get(key, key)


def active_bindings(screen: Screen[object]) -> list[Binding]:
    """Bindings with an id that work now, in order of definition: the innermost first."""
    seen: dict[str, Binding] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if binding.id and active.enabled and binding.id not in seen:
            seen[binding.id] = binding
    return list(seen.values())


class KeyBar(LinePanel):
    """Shows the bindings that want to be shown, as many as fit."""

    def on_mount(self) -> None:
        """Draw, and draw again whenever the keys change."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _screen: self.update_keys())
        self.call_after_refresh(self.update_keys)

    def on_resize(self) -> None:
        """Another width, another number of keys."""
        self.update_keys()

    def update_keys(self) -> None:
        """Draw the keys that work now."""
        if not self.is_attached:
            return
        shown = [binding for binding in active_bindings(self.screen) if binding.show]
        # Screens stand first, then what works on this one, then what works everywhere.
        shown.sort(
            key=lambda b: (b.action.startswith("show("), b.group != EVERYWHERE), reverse=True
        )
        gap = 2
        if row_width(self._row(shown, gap)) > self.size.width:
            gap = 1
        while row_width(self._row(shown, gap)) > self.size.width + gap:
            least = min(reversed(shown), key=_worth, default=None)
            if least is None or _worth(least) == len(_DROPPED_FIRST) + 1:
                break
            shown.remove(least)
        self.show([_trimmed(self._row(shown, gap))])

    def _row(self, bindings: list[Binding], gap: int) -> list[Span]:
        row: list[Span] = [Span(" ")]
        for binding in bindings:
            row.append(Span(binding.key_display or key_name(binding.key), "key"))
            row.append(Span(f" {binding.description}{' ' * gap}"))
        return row


def _worth(binding: Binding) -> int:
    """How late a key leaves the bar."""
    if binding.id in _KEPT:
        return len(_DROPPED_FIRST) + 1
    if binding.id in _DROPPED_FIRST:
        return _DROPPED_FIRST.index(binding.id)
    return len(_DROPPED_FIRST)


def _trimmed(row: list[Span]) -> Row:
    return (*row[:-1], Span(row[-1].text.rstrip(), row[-1].style))
