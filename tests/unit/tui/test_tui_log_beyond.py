"""Lines that are not held: pages across dropped lines, and what the server finds for a filter."""

from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.engines import LogMatch, LogMatches, LogWindow
from tui.client.log_reader import PAGE, earlier_matches, older_pages
from tui.state.log_buffer import LogBuffer, LogLine, parse_filter
from tui.state.log_search import EarlierMatches


def window(first: int, count: int, *, skipped: int = 0, total: int = 5000) -> LogWindow:
    lines = [f"line {number}" for number in range(first, first + count)]
    return LogWindow(
        engine_id="e", model="m", first_line=first, total_lines=total, lines=lines, skipped=skipped
    )


def matches(*numbers: int, since: int, until: int, is_complete: bool = False) -> LogMatches:
    return LogMatches(
        engine_id="e", model="m", total_lines=5000, scanned_from=since, scanned_to=until,
        is_complete=is_complete, skipped=3,
        matches=[LogMatch(line=number, text=f"Line {number}") for number in numbers],
    )  # fmt: skip


def gaps(buffer: LogBuffer) -> list[tuple[int, int, bool]]:
    return [(line.number, line.gap, line.is_dropped) for line in buffer.lines if line.gap]


def test_a_window_that_begins_behind_dropped_lines_says_so() -> None:
    buffer = LogBuffer()
    buffer.append(window(4001, 1000, skipped=3900))
    assert gaps(buffer) == [(4000, 3900, True)]
    assert buffer.first_number == 4001
    # Older lines take the place of the gap, which then is between the two.
    assert buffer.prepend(window(1, 100)) == 100
    assert gaps(buffer) == [(4000, 3900, True)]
    assert [line.number for line in buffer.lines] == [*range(1, 101), *range(4000, 5001)]
    buffer.append(window(5011, 1))
    assert gaps(buffer)[-1] == (5010, 10, False)


def test_a_page_that_begins_behind_dropped_lines_says_so() -> None:
    buffer = LogBuffer()
    buffer.append(window(4501, 500))
    assert buffer.prepend(window(4001, 500, skipped=3900)) == 500
    assert gaps(buffer) == [(4000, 3900, True)]
    assert buffer.prepend(window(51, 50)) == 50
    assert gaps(buffer) == [(4000, 3900, True)]


def test_a_page_that_fits_in_part_joins_what_is_held() -> None:
    buffer = LogBuffer(capacity=120)
    buffer.append(window(4901, 100))
    assert buffer.prepend(window(4801, 100, skipped=7)) == 20
    assert gaps(buffer) == []
    assert buffer.first_number == 4881
    assert buffer.prepend(window(4781, 100)) == 0


class Server:
    def __init__(self, *answers: LogWindow | LogMatches) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    async def log_before(self, engine: str, before: int, count: int) -> LogWindow:
        assert (engine, count) == ("e", PAGE)
        self.asked.append(before)
        return self.answers.pop(0)

    async def search_log(self, engine: str, text: str, before: int, count: int) -> LogMatches:
        assert (engine, text, count) == ("e", "line", PAGE)
        self.asked.append(before)
        return self.answers.pop(0)


async def test_pages_go_on_before_a_page_that_is_dropped() -> None:
    buffer = LogBuffer()
    buffer.append(window(4001, 1000))
    server = Server(window(3901, 100, skipped=3000), window(1, 900))
    await older_pages(server, "e", 4001, 3001, buffer.prepend)
    assert server.asked == [4001, 3901]
    assert gaps(buffer) == [(3900, 3000, True)]
    assert buffer.first_number == 1


async def test_a_search_goes_on_until_it_is_complete_or_a_page_was_found() -> None:
    keep = parse_filter("line")
    earlier = EarlierMatches()
    server = Server(
        matches(since=3000, until=4001), matches(2500, 2600, since=2400, until=3000),
        matches(7, since=1, until=2400, is_complete=True),
    )  # fmt: skip
    await earlier_matches(server, "e", "line", 4001, lambda found: earlier.take(found, keep))
    assert server.asked == [4001, 3000, 2400]
    assert [line.number for line in earlier.lines] == [7, 2500, 2600]
    assert (earlier.scanned_from, earlier.is_complete, earlier.dropped) == (1, True, 9)
    earlier.end_before(2600)
    assert [line.number for line in earlier.lines] == [7, 2500]
    full = Server(matches(since=10, until=20))
    await earlier_matches(full, "e", "line", 20, lambda found: PAGE)
    assert full.asked == [20]


async def test_a_search_that_gets_nowhere_ends() -> None:
    server = Server(matches(since=20, until=20))
    await earlier_matches(server, "e", "line", 20, lambda found: 0)
    assert server.asked == [20]


def test_the_filter_has_the_last_word_on_what_the_server_found() -> None:
    earlier = EarlierMatches()
    assert earlier.take(matches(5, 6, since=1, until=9), parse_filter("Line 6")) == 1
    assert earlier.take(matches(1, 2, since=1, until=9), parse_filter("line 6")) == 0
    assert [line.number for line in earlier.lines] == [6]


@given(
    st.lists(
        st.sampled_from(["Er", "x", ".", ".*", ".+?", "^", "$", "|", "(", ")", "?", "*", "[e]",
                         "\\", "é", "{2}"]),
        min_size=1, max_size=6,
    ),
    st.text("erxÉé ", max_size=12),
)  # fmt: skip
def test_what_a_filter_keeps_contains_its_needle(parts: list[str], text: str) -> None:
    try:
        keep = parse_filter("".join(parts))
    except ValueError:
        return
    if keep is not None and keep.keeps(LogLine(1, text)):
        assert keep.needle.lower() in text.lower()


def test_needles() -> None:
    found = {
        "cuda": "cuda", "core.py": "core", "error.*timed out": "timed out", "^ERROR": "ERROR",
        "a|b": "", "!cuda": "", "fo+": "", r"\d": "", "é": "", "é b": "", ".": "",
    }  # fmt: skip
    assert {source: parse_filter(source).needle for source in found} == found
