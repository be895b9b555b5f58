"""Colours. Hues of Okabe and Ito, which people with any kind of colour vision can tell apart."""

from collections.abc import Mapping

from textual.theme import BUILTIN_THEMES, Theme

STYLE_NAMES = (
    "title", "muted", "name", "selected", "head", "rule", "key", "cursor", "accent",
    "good", "busy", "asleep", "warn", "error", "banner",
    "weights", "kv", "launcher", "other", "free",
    "debug", "match", "current", "gap",
)  # fmt: skip
"""Names that rows use; `tui.tcss` gives each its colour as `.row--<name>`."""

DARK = Theme(
    name="appliance",
    dark=True,
    primary="#56B4E9",
    secondary="#CC79A7",
    accent="#56B4E9",
    warning="#E69F00",
    error="#FF7F50",
    success="#2CC295",
    foreground="#D5DAE1",
    background="#0E1116",
    surface="#161A21",
    panel="#1D232C",
)

LIGHT = Theme(
    name="appliance-light",
    dark=False,
    primary="#00567F",
    secondary="#8A2F66",
    accent="#00567F",
    warning="#7A5200",
    error="#A63A00",
    success="#00654A",
    foreground="#1B1F24",
    background="#FBFBF8",
    surface="#F1F1EC",
    panel="#E6E6DF",
)

THEMES = (DARK, LIGHT)
DEFAULT = DARK.name
COLOURLESS = "ansi-dark"


def choose_theme(wanted: str | None, environ: Mapping[str, str]) -> str:
    """The theme to start with; NO_COLOR asks for the terminal's own attributes only."""
    if wanted:
        return wanted
    return COLOURLESS if environ.get("NO_COLOR") else DEFAULT


def theme_names() -> list[str]:
    """Every theme that can be chosen."""
    return sorted({*BUILTIN_THEMES, *(theme.name for theme in THEMES)})
