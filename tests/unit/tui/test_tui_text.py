import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.text import format as text
from tui.text.clipboard import LIMIT_BASE64, clipboard_sequence
from tui.text.fit import cut_cells, fit, fit_right, shorten, shorten_middle, width_of, wrap
from tui.text.rows import Span, crop_row, pad_row, row_width, spread, text_of
from tui.text.sanitize import sanitize, sanitize_line

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain [bold] text", "plain [bold] text"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[?25lhidden", "hidden"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r0m\x1b\\x", "x"),
        ("\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\y", "y"),
        ("\x9b31mc1 csi", "c1 csi"),
        ("\x9d0;title\x9cafter", "after"),
        ("lone \x1b", "lone "),
        ("\x1bcreset", "reset"),
        ("a\x08b\x07c\x7fd\x00e", "abcde"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("\u202egnp.exe\u2066x", "gnp.exex"),
        ("wide 模型 stays", "wide 模型 stays"),
        ("surrogate \udc80", "surrogate "),
    ],
)
def test_what_a_terminal_would_act_on_goes(raw: str, clean: str) -> None:
    assert sanitize(raw) == clean


@given(st.text(alphabet=st.sampled_from("a\x1b[]PX^_\x07\\;0m\x9b\x9c\x90\n\t \u202e")))
def test_nothing_forbidden_remains(raw: str) -> None:
    clean = sanitize(raw)
    assert FORBIDDEN.search(clean) is None
    assert sanitize(clean) == clean


@given(st.text())
def test_any_text_can_be_written_to_a_terminal(raw: str) -> None:
    sanitize_line(raw).encode()
    assert "\n" not in sanitize_line(raw)


@given(st.text(st.characters(exclude_categories=["C", "M"])), st.integers(0, 60))
def test_fitting_gives_exactly_the_width(raw: str, width: int) -> None:
    assert width_of(fit(raw, width)) == width
    assert width_of(fit_right(raw, width)) == width
    assert width_of(shorten(raw, width)) <= width


@given(st.text("abc模型", max_size=60), st.integers(1, 40))
def test_names_shorten_in_the_middle(raw: str, width: int) -> None:
    assert width_of(shorten_middle(raw, width)) <= width


def test_a_short_name_keeps_both_ends() -> None:
    assert shorten_middle("Qwen3-235B-A22B-FP8", 12) == "Qwen3-…B-FP8"


@given(st.text("ab 模型", max_size=80), st.integers(2, 30))
def test_wrapping_keeps_all_words(raw: str, width: int) -> None:
    lines = wrap(raw, width)
    assert all(width_of(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == raw.replace(" ", "")


@given(st.text("ab模型", max_size=80), st.integers(2, 30))
def test_cutting_loses_nothing(raw: str, width: int) -> None:
    pieces = cut_cells(raw, width)
    assert "".join(pieces) == raw
    assert all(width_of(piece) <= width for piece in pieces)


def test_rows_pad_crop_and_spread() -> None:
    row = (Span("abc", "x"), Span("def"))
    assert text_of(pad_row(row, 8)) == "abcdef  "
    assert row_width(crop_row(row, 4)) <= 4
    assert text_of(spread(row, (Span("R"),), 10)) == "abcdef   R"
    assert row_width(spread(row, (Span("R"),), 4)) == 4


def test_numbers_for_people() -> None:
    assert text.gib(int(71.24 * text.GIB)) == "71.2"
    assert [text.countdown(s) for s in (-3, 45, 252, 7300, 200000)] == [
        "0s",
        "45s",
        "4m",
        "2h",
        "2d",
    ]
    assert [text.clock_span(s) for s in (38, 725, 3723)] == ["0:38", "12:05", "1:02:03"]
    assert [text.latency(s) for s in (0.31, 1.24, 14.2)] == ["310ms", "1.2s", "14s"]
    assert text.index_ranges([0, 1]) == "0,1"
    assert text.index_ranges([7, 4, 5, 6, 9]) == "4-7,9"
    assert text.uptime(12 * 86400 + 4 * 3600) == "12d 4h"
    assert text.tokens(32768) == "32k"


def test_clipboard_is_wrapped_for_multiplexers() -> None:
    payload = base64.b64encode(b"line").decode()
    bare = f"\x1b]52;c;{payload}\x07"
    assert clipboard_sequence("line", {}) == bare
    tmux = clipboard_sequence("line", {"TMUX": "x"})
    assert tmux == f"{bare}\x1bPtmux;\x1b{bare}\x1b\\"
    assert clipboard_sequence("line", {"STY": "x"}) == f"\x1bP{bare}\x1b\\"
    assert clipboard_sequence("x" * LIMIT_BASE64, {}) is None
