"""The keys that move in a list, as in vim and less."""

from textual.binding import Binding, BindingType

_LISTS = Binding.Group("Lists")


def list_keys(where: str) -> list[BindingType]:
    """Bindings of a screen that has `action_move`; `where` begins their ids."""
    keys = (
        ("j,down", 1, "down", "Next row"),
        ("k,up", -1, "up", "Previous row"),
        ("ctrl+d,pagedown", 10, "page_down", "Ten rows down"),
        ("ctrl+u,pageup", -10, "page_up", "Ten rows up"),
        ("g,home", -100_000, "first", "First row"),
        ("G,end", 100_000, "last", "Last row"),
    )
    return [
        Binding(
            key,
            f"move({rows})",
            name,
            id=f"{where}.{name}",
            show=False,
            group=_LISTS,
            tooltip=tooltip,
        )
        for key, rows, name, tooltip in keys
    ]
