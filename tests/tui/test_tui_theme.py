"""Colours can be told from their ground, and every style has one."""

import pytest
from textual.color import Color
from textual.theme import Theme

from tui.app import ApplianceApp
from tui.theme import STYLE_NAMES, THEMES, choose_theme, theme_names

LEAST_CONTRAST = 4.5
MUTED = 0.65


def contrast(one: Color, other: Color) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: Color) -> float:
    parts = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized)
    return sum(p * weight for p, weight in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_can_be_read(theme: Theme) -> None:
    for ground in (theme.background, theme.surface, theme.panel):
        assert ground is not None
        below = Color.parse(ground)
        for text in (theme.foreground, theme.primary, theme.warning, theme.error, theme.success,
                     theme.secondary):  # fmt: skip
            assert text is not None
            assert contrast(Color.parse(text), below) >= LEAST_CONTRAST, (text, ground)
        assert theme.foreground is not None
        muted = below.blend(Color.parse(theme.foreground), MUTED)
        assert contrast(muted, below) >= LEAST_CONTRAST, ground


@pytest.mark.parametrize("name", STYLE_NAMES)
async def test_every_style_has_its_rule(name: str) -> None:
    path = ApplianceApp.CSS_PATH
    from pathlib import Path

    import tui.app

    sheet = (Path(tui.app.__file__).parent / str(path)).read_text()
    assert f".row--{name} " in sheet


def test_no_color_asks_for_attributes_only() -> None:
    assert choose_theme(None, {"NO_COLOR": "1"}) == "ansi-dark"
    assert choose_theme("appliance-light", {"NO_COLOR": "1"}) == "appliance-light"
    assert choose_theme(None, {}) in theme_names()
