"""Write the parts of README.md that follow from the code: settings, and the keys of the UI.

`--check` changes nothing and fails if the file is out of date.
"""

import ast
import sys
from pathlib import Path

from textual.binding import Binding

from tui.app import ApplianceApp
from tui.screens.batches import BatchesScreen
from tui.screens.dashboard import DashboardScreen
from tui.screens.logs import LogsScreen

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SETTINGS = ROOT / "appliance/config/settings.py"
KEY_NAMES = {
    "slash": "/",
    "question_mark": "?",
    "colon": ":",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "exclamation_mark": "!",
    "plus": "+",
    "minus": "-",
    "up": "↑",
    "down": "↓",
    "pagedown": "page down",
    "pageup": "page up",
}


def settings() -> str:
    """A table for each class of the settings that stands for a table of the file."""
    parts = []
    for node in ast.parse(SETTINGS.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        heading = (ast.get_docstring(node) or "").split("`")
        if len(heading) > 1 and heading[1].startswith("["):
            rows = [f"| `{name}` | {default} | {text} |" for name, default, text in fields(node)]
            parts.append(
                "\n".join([f"| `{heading[1]}` | default | |", "| --- | --- | --- |", *rows])
            )
    return "\n\n".join(parts)


def fields(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Name, default and description of each field."""
    found = []
    for field, text in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if not (isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)):
            raise SystemExit(f"{SETTINGS.name}: {field.target.id} has no description")
        default = None
        if isinstance(field.value, ast.Attribute):
            default = field.value.attr.lower()
        elif field.value is not None:
            default = ast.literal_eval(field.value)
        shown = (
            ""
            if default in (None, [])
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        found.append((field.target.id, shown, " ".join(str(text.value.value).split())))
    return found


def keys() -> str:
    """A table of all bindings, screen by screen."""
    rows = ["| where | key | does |", "| --- | --- | --- |"]
    for where, owner in (
        ("everywhere", ApplianceApp),
        ("dashboard", DashboardScreen),
        ("logs", LogsScreen),
        ("batches", BatchesScreen),
    ):
        for binding in owner.BINDINGS:
            if isinstance(binding, Binding) and binding.tooltip:
                names = " ".join(f"`{shown(key)}`" for key in binding.key.split(","))
                rows.append(f"| {where} | {names} | {binding.tooltip} |")
                where = ""
    return "\n".join(rows)


def shown(key: str) -> str:
    """A key as a person names it."""
    return KEY_NAMES.get(key, key)


def replaced(text: str, name: str, content: str) -> str:
    """`text` with the part between the marks of `name` replaced."""
    start, end = f"<!-- {name}: written by scripts/fix -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"README.md has no marks for {name}")
    return f"{before}{start}{content}{end}{after}"


def main() -> int:
    old = README.read_text()
    new = replaced(replaced(old, "settings", settings()), "keys", keys())
    if "--check" in sys.argv:
        if new != old:
            print("README.md is out of date: run scripts/fix", file=sys.stderr)
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
