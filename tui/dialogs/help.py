"""Help: the keys that work here, from the bindings themselves."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.widget import Widget

from tui.dialogs.dialog import Dialog, fact
from tui.text.fit import fit
from tui.widgets.key_bar import key_name

_OTHER = "Everywhere"


class HelpDialog(Dialog[None]):
    """Grouped keys with what they do."""

    def __init__(self, bindings: list[tuple[str, Binding]], *, is_ascii: bool = False) -> None:
        super().__init__("Keys", is_ascii=is_ascii)
        self._keys = bindings

    def compose_body(self) -> Iterable[Widget]:
        """One paragraph a group."""
        for group, lines in help_groups(self._keys).items():
            yield fact(group, classes="good")
            yield fact("\n".join(lines))


def help_groups(bindings: list[tuple[str, Binding]]) -> dict[str, list[str]]:
    """Lines of help by group; a binding with several keys takes one line."""
    keys: dict[str, list[str]] = {}
    by_id: dict[str, Binding] = {}
    for key, binding in bindings:
        if binding.id:
            keys.setdefault(binding.id, []).append(binding.key_display or key_name(key))
            by_id[binding.id] = binding
    # A key that another row names beside its own, as `[ ]` does, needs no row.
    named = {name for each in by_id.values() for name in (each.key_display or "").split()[1:]}
    groups: dict[str, list[str]] = {}
    for identifier, binding in by_id.items():
        if named.issuperset(keys[identifier]):
            continue
        group = binding.group.description if binding.group else _OTHER
        names = " ".join(dict.fromkeys(keys[identifier]))
        groups.setdefault(group, []).append(f"  {fit(names, 16)} {binding.tooltip}")
    return groups
