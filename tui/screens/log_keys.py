"""The keys of the log screen: those of less, where less has one."""

from textual.binding import Binding, BindingType

_LOG = Binding.Group("Log")


def _key(
    key: str,
    action: str,
    name: str,
    identifier: str,
    tooltip: str,
    *,
    show: bool = True,
    display: str | None = None,
) -> Binding:
    return Binding(
        key,
        action,
        name,
        id=f"log.{identifier}",
        tooltip=tooltip,
        show=show,
        group=_LOG,
        key_display=display,
    )


LOG_KEYS: list[BindingType] = [
    _key("f", "follow", "follow", "follow", "Follow the end, or stay"),
    _key("w", "wrap", "wrap", "wrap", "Wrap long lines, or cut them"),
    _key("slash", "filter", "filter", "filter", "Filter: a regular expression, !x inverts"),
    _key("n", "match(1)", "match", "next_match", "Next match of the last filter"),
    _key("N", "match(-1)", "match back", "previous_match", "Previous match", show=False),
    _key("e", "error(1)", "error", "next_error", "Next line that reports an error"),
    _key("E", "error(-1)", "error back", "previous_error", "Previous error", show=False),
    _key("y,c", "copy", "copy", "copy", "Copy the current line or the marked range"),
    _key("m", "mark", "mark", "mark", "Mark the start of a range", show=False),
    _key(
        "left_square_bracket",
        "engine(-1)",
        "engine",
        "previous_engine",
        "Log of the previous or the next engine",
        display="[ ]",
    ),
    _key(
        "right_square_bracket",
        "engine(1)",
        "engine",
        "next_engine",
        "Log of the next engine",
        show=False,
    ),
    _key("g,home", "first", "first", "first", "First line of the log", show=False),
    _key("G,end", "last", "last", "last", "Last line; follows again", show=False),
    _key("j,down", "move(1)", "down", "down", "Next line", show=False),
    _key("k,up", "move(-1)", "up", "up", "Previous line", show=False),
    _key("ctrl+d,pagedown", "page(1)", "page down", "page_down", "Page down", show=False),
    _key("ctrl+u,pageup", "page(-1)", "page up", "page_up", "Page up", show=False),
    _key("left", "sideways(-20)", "left", "left", "Scroll left", show=False),
    _key("right", "sideways(20)", "right", "right", "Scroll right", show=False),
    _key("x", "command", "cmd", "command", "The command line that does the same", show=False),
    _key("escape", "back", "back", "back", "Clear the filter, then go back", show=False),
]
