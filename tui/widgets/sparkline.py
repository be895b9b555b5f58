"""Sparklines."""

from collections.abc import Sequence

from tui.text.glyphs import Glyphs


def sparkline(values: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """The last `width` values as one line of blocks, the highest as the full block."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=0.0)
    steps = len(glyphs.sparks) - 1
    marks = (
        glyphs.sparks[0] if top <= 0 else glyphs.sparks[round(max(0.0, value) / top * steps)]
        for value in shown
    )
    return (glyphs.sparks[0] * (width - len(shown))) + "".join(marks)
