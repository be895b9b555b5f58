import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.engines import LogWindow
from tui.state.log_buffer import (
    FilterError,
    Level,
    LogBuffer,
    LogLine,
    level_of,
    parse_filter,
)
from tui.state.log_rows import LogRows, Wanted


def window(first: int, count: int, *, total: int = 0, skipped: int = 0) -> LogWindow:
    return LogWindow(
        engine_id="e",
        model="m",
        first_line=first,
        total_lines=total or first + count - 1,
        lines=[f"line {number}" for number in range(first, first + count)],
        skipped=skipped,
    )


def numbers(buffer: LogBuffer) -> list[int]:
    return [line.number for line in buffer.lines if not line.gap]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("INFO 06-10 12:00:00 [core.py:1] hi", Level.INFO),
        ("WARNING 06-10 12:00:00 hi", Level.WARNING),
        ("(EngineCore pid=1) ERROR 06-10 hi", Level.ERROR),
        ("DEBUG x", Level.DEBUG),
        ("Traceback (most recent call last):", Level.ERROR),
        ("torch.OutOfMemoryError: CUDA out of memory", Level.ERROR),
        ("Loading shards: 50%", Level.INFO),
        ("an informal error in a sentence", Level.INFO),
    ],
)
def test_levels(text: str, level: Level) -> None:
    assert level_of(text) is level


def test_windows_join_without_repeats() -> None:
    buffer = LogBuffer()
    buffer.append(window(5, 10, total=14))
    assert len(buffer.append(window(10, 8, total=17))) == 3
    assert numbers(buffer) == list(range(5, 18))
    assert buffer.prepend(window(1, 6)) == 4
    assert numbers(buffer) == list(range(1, 18))


def test_missing_lines_become_a_counted_gap() -> None:
    buffer = LogBuffer()
    buffer.append(window(1, 3))
    added = buffer.append(window(10, 2))
    assert [line.gap for line in added] == [6, 0, 0]
    assert buffer.append(window(20, 1, skipped=8))[0].gap == 8


def test_the_ring_drops_the_oldest_and_says_so() -> None:
    buffer = LogBuffer(capacity=100)
    for start in range(1, 12_001, 1000):
        buffer.append(window(start, 1000))
    assert buffer.last_number == 12_000
    assert len(buffer.lines) <= 100 + 5000
    assert buffer.dropped == 12_000 - len(buffer.lines)
    assert buffer.first_number == buffer.dropped + 1


def test_a_full_ring_takes_no_older_lines() -> None:
    buffer = LogBuffer(capacity=10)
    buffer.append(window(100, 10))
    assert buffer.is_full
    assert buffer.prepend(window(90, 10)) == 0


def test_escape_sequences_do_not_enter() -> None:
    buffer = LogBuffer()
    buffer.append(
        LogWindow(
            engine_id="e",
            model="m",
            first_line=1,
            total_lines=1,
            lines=["\x1b]0;x\x07\x1b[31mred\ttab"],
        )
    )
    assert buffer.lines[0].text == "red tab"


def test_filters() -> None:
    line = LogLine(1, "An ERROR here")
    assert parse_filter("") is None
    assert parse_filter("!") is None
    assert parse_filter("error|warn").keeps(line)
    assert not parse_filter("Error").keeps(line)
    assert not parse_filter("!error").keeps(line)
    assert parse_filter("!other").keeps(LogLine(1, "", gap=4))
    with pytest.raises(FilterError):
        parse_filter("(")


@given(st.lists(st.text("ab模", max_size=30), max_size=30), st.integers(2, 12) | st.none())
def test_every_row_belongs_to_its_line(texts: list[str], width: int | None) -> None:
    rows = LogRows()
    rows.wrap_width = width
    lines = [LogLine(number, text) for number, text in enumerate(texts, start=1)]
    rows.rebuild(lines[: len(lines) // 2])
    rows.extend(lines[len(lines) // 2 :])
    seen: dict[int, str] = {}
    for row in range(rows.height):
        index, text = rows.text_at(row)
        seen[index] = seen.get(index, "") + text
    assert [seen[index] for index in sorted(seen)] == texts
    for index in range(len(texts)):
        assert rows.at_row(rows.row_of(index)) == index


def test_searching_skips_gaps_and_stops_at_the_ends() -> None:
    rows = LogRows()
    rows.rebuild([
        LogLine(1, "ERROR a", Level.ERROR), LogLine(2, "", gap=3), LogLine(3, "b"),
        LogLine(4, "ERROR c", Level.ERROR),
    ])  # fmt: skip
    assert rows.find(0, 1, Wanted()) == 3
    assert rows.find(3, -1, Wanted()) == 0
    assert rows.find(3, 1, Wanted()) is None
    assert rows.find(-1, 1, Wanted(parse_filter("b"))) == 2
    assert rows.index_of(3) == 2
    assert rows.index_of(99) == 3


def dead(first: int, *texts: str) -> LogWindow:
    return LogWindow(engine_id="e", model="m", first_line=first, total_lines=20, lines=[*texts])


def errors(buffer: LogBuffer) -> list[int]:
    return [line.number for line in buffer.lines if line.level is Level.ERROR]


def test_what_comes_after_a_stop_is_no_error() -> None:
    end = "ERROR x vllm.v1.engine.exceptions.EngineDeadError: gone"
    buffer = LogBuffer()
    buffer.append(dead(10, "ERROR a", end, "ERROR b"))
    assert errors(buffer) == [10, 11, 12]
    assert buffer.set_stopped(True)
    assert errors(buffer) == [10]
    assert not buffer.set_stopped(True)
    buffer.append(dead(13, "ERROR c"))
    assert errors(buffer) == [10]
    buffer.prepend(dead(7, "ERROR d", "ERROR AsyncLLM output_handler failed.", "ERROR e"))
    assert errors(buffer) == [7]
    buffer.clear()
    buffer.append(dead(1, end))
    assert errors(buffer) == [1]
