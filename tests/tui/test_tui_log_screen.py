"""The log: follow, filter, search, copy, engines, gaps."""

import msgspec
import pytest
import tui_scenes as scenes
from textual.widgets import Input
from tui_fake_client import FakeClient, make_app
from tui_pilot import logs, open_logs, shown, until

from appliance.protocol.engines import LogWindow
from appliance.protocol.events import EngineChanged
from tui.screens.dashboard import DashboardScreen
from tui.screens.logs import LogsScreen
from tui.widgets.log_view import LogView

SIZE = (80, 24)


@pytest.fixture(autouse=True)
def flush_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogsScreen, "FLUSH_S", 0.001)
    monkeypatch.setattr(LogsScreen, "SEARCH_DELAY_S", 0.0)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(scenes.snapshot())


def more(first: int, count: int, *, skipped: int = 0) -> LogWindow:
    lines = [f"INFO line {number}" for number in range(first, first + count)]
    return LogWindow(
        engine_id="e", model="m", first_line=first, total_lines=first + count - 1, lines=lines,
        skipped=skipped,
    )  # fmt: skip


async def test_it_follows_the_end_through_new_lines_and_resizing(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        assert "step 3000 of the engine" in shown(app)
        client.log_inbox.put_nowait(more(3001, 5))
        await until(pilot, lambda: "INFO line 3005" in shown(app))
        await pilot.resize_terminal(80, 14)
        await until(pilot, lambda: "line 3,005 of 3,005" in shown(app))
        assert "INFO line 3005" in shown(app)
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "INFO line 3005" in shown(app))


async def test_a_paused_log_stays_where_it_is(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "f")
        view = logs(app).log_view
        before = view.scroll_offset.y
        client.log_inbox.put_nowait(more(3001, 50))
        await until(pilot, lambda: view.buffer.last_number == 3050)
        assert view.scroll_offset.y == before
        assert "PAUSED" in shown(app)
        await pilot.press("G")
        await until(pilot, lambda: "INFO line 3050" in shown(app))
        assert "FOLLOW" in shown(app)


async def test_skipped_lines_are_a_counted_gap(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        client.log_inbox.put_nowait(more(3213, 2, skipped=212))
        await until(pilot, lambda: "212 lines skipped: this terminal could not" in shown(app))


async def test_filter_as_you_type_keep_and_clear(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"error|warn")
        await until(pilot, lambda: "/error|warn  2 from line 1,001" in shown(app))
        await pilot.press("enter")
        assert "Memory usage is higher" in shown(app)
        assert "step 3000" not in shown(app)
        await pilot.press("escape")
        await until(pilot, lambda: "step 3000" in shown(app))
        view = logs(app).log_view
        assert view.filter is None
        await pilot.press("n")
        assert view.current.number == 2985
        await pilot.press("N")
        assert view.current.number == 2980
        await pilot.press("slash")
        assert app.screen.query_one(Input).value == "error|warn"


async def test_an_inverted_filter_and_a_broken_one(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"!step")
        await until(pilot, lambda: "/!step  3 from line 1,001" in shown(app))
        await pilot.press("escape", "slash", "(")
        await until(pilot, lambda: "not a regular expression: missing" in shown(app))


async def test_question_mark_in_the_filter_is_text(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", "a", "question_mark", "slash", "colon", "1", "q")
        assert app.screen.query_one(Input).value == "a?/:1q"


async def test_errors_are_one_key_away(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "e")
        view = logs(app).log_view
        assert view.current.number == 2985
        await pilot.press("e")
        assert view.current.number == 2985
        await pilot.press("g")
        await until(pilot, lambda: view.buffer.first_number == 1)
        await until(pilot, lambda: view.current.number == 1)
        await pilot.press("e")
        assert view.current.number == 14
        await pilot.press("e")
        assert view.current.number == 2985
        await pilot.press("E")
        assert view.current.number == 14


async def test_wrapping_shows_the_whole_line(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "e", "w")
        assert "WRAP on" in shown(app)
        assert shown(app).count("very long reason") >= 10
        await pilot.press("w", "right")
        await pilot.pause()
        assert "WRAP off" in shown(app)


async def test_copying_a_line_and_a_range(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "y")
        assert app.clipboard == scenes.LOG[-1]
        await pilot.press("m", "k", "k")
        assert "3 lines marked" in shown(app)
        await pilot.press("y")
        assert app.clipboard == "\n".join(scenes.LOG[-3:])


async def test_brackets_change_the_engine(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        assert "[1/6 logs]" in shown(app)
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "[2/6 logs]" in shown(app))
        await pilot.press("left_square_bracket", "left_square_bracket")
        await until(pilot, lambda: "[6/6 logs]" in shown(app))


async def test_older_lines_come_when_looked_for(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        view = logs(app).log_view
        assert view.buffer.first_number == 1001
        view.set_cursor(0)
        await until(pilot, lambda: view.buffer.first_number == 1)
        assert view.current.number == 1001


async def test_x_and_escape(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "x")
        await until(pilot, lambda: "appliance logs -f bge-m3" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, LogsScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))


async def test_pages_and_steps(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "k", "j", "ctrl+u")
        view = logs(app).log_view
        assert view.current.number == 3000 - view.size.height + 1
        await pilot.press("pagedown", "left", "down")
        assert view.current.number == 3000


async def test_a_log_that_is_gone_says_so() -> None:
    gone = scenes.frozen_model("gone", scenes.EngineState.FAILED, engine_id="eng_none")
    client = FakeClient(scenes.snapshot(models=[gone]))
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = pilot.app
        await until(pilot, lambda: "gone" in shown(app))
        await pilot.press("l")
        await until(pilot, lambda: "no such engine It was dropped." in shown(app))


def rows_in_sight(view: LogView) -> tuple[int, int]:
    """Rows above the current line in the view, and below it."""
    first = view._rows.row_of(view.cursor) - view.scroll_offset.y
    return first, view.size.height - first - view._rows.rows_of(view.cursor)


LONG = ["INFO " + "a long line " * 30] * 60


@pytest.mark.parametrize("keys", [("e", "w"), ("w", "e"), ("w", "g", "e")])
async def test_the_current_line_is_in_sight_with_all_its_rows(keys: tuple[str, ...]) -> None:
    log = [*LONG, "ERROR " + "why it failed " * 20, *LONG]
    client = FakeClient(scenes.snapshot(), log)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, *keys)
        view = logs(app).log_view
        await until(pilot, lambda: view.current.number == 61)
        await pilot.pause()
        assert "ERROR why it failed" in shown(app)
        above, below = rows_in_sight(view)
        assert abs(above - below) <= 1
        await pilot.resize_terminal(70, 16)
        await pilot.pause()
        assert min(rows_in_sight(view)) >= 0


async def test_toggling_wrap_keeps_the_current_line_in_sight() -> None:
    log = [*LONG, "ERROR " + "why it failed " * 20, *LONG]
    async with make_app(FakeClient(scenes.snapshot(), log)).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "e")
        for _ in range(4):
            await pilot.press("w")
            await pilot.pause()
            assert min(rows_in_sight(logs(app).log_view)) >= 0


async def test_stepping_in_a_wrapped_log_shows_whole_lines() -> None:
    client = FakeClient(scenes.snapshot(), LONG)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "w", "g")
        view = logs(app).log_view
        for key in ("j",) * 9 + ("k",) * 9:
            await pilot.press(key)
            assert min(rows_in_sight(view)) >= 0


async def test_opening_the_failing_line_of_a_wrapped_log() -> None:
    failure = msgspec.structs.replace(scenes.FAILURE, log_line=61)
    failed = scenes.frozen_model("gone", scenes.EngineState.FAILED, failure=failure)
    log = [*LONG, "ERROR " + "why it failed " * 20, *LONG]
    client = FakeClient(scenes.snapshot(models=[failed]), log)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "w", "1")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))
        await pilot.press("l")
        await until(pilot, lambda: "ERROR why it failed" in shown(app))
        above, below = rows_in_sight(logs(app).log_view)
        assert abs(above - below) <= 1


async def test_an_invalid_filter_stays_open_and_says_why(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"[bad", "enter")
        # Lines that come meanwhile do not wipe it out.
        client.log_inbox.put_nowait(more(3001, 5))
        await until(pilot, lambda: "INFO line 3005" in shown(app))
        assert "not a regular expression: unterminated" in shown(app)
        assert app.focused is app.screen.query_one(Input)
        await pilot.press("escape")
        await until(pilot, lambda: "not a regular expression" not in shown(app))
        assert app.focused is logs(app).log_view


async def test_one_message_at_a_time_and_it_leaves_the_filter_free(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE, notifications=True) as pilot:
        app = await open_logs(pilot, "n")
        await until(pilot, lambda: "Nothing to search for yet" in shown(app))
        await pilot.press("e", "E", "E", "E")
        await until(pilot, lambda: "No earlier error in the lines held here." in shown(app))
        await pilot.press("e")
        await until(pilot, lambda: "No further error in the lines held here." in shown(app))
        told = [line for line in shown(app).splitlines() if "held here" in line]
        assert told == shown(app).splitlines()[1:2]


DEAD = [
    "INFO 03-14 12:00:01 [core.py:58] ready",
    "ERROR 03-14 12:00:02 [core.py:58] a request failed",
    "ERROR 03-14 12:00:03 [async_llm.py:541] AsyncLLM output_handler failed.",
    "ERROR 03-14 12:00:03 [async_llm.py:541] Traceback (most recent call last):",
    "ERROR 03-14 12:00:03 [async_llm.py:541] vllm.v1.engine.exceptions.EngineDeadError: gone",
]


@pytest.mark.parametrize(("state", "last"), [("stopped", 2), ("stopping", 2), ("ready", 5)])
async def test_what_a_stopped_engine_says_last_is_no_error(state: str, last: int) -> None:
    engine = scenes.engine_of(scenes.QWEN)
    client = FakeClient(scenes.snapshot(models=[scenes.QWEN], engines=[engine]), DEAD)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        ended = msgspec.structs.replace(engine, state=scenes.EngineState(state))
        client.inbox.put_nowait(EngineChanged(engine=ended))
        await until(pilot, lambda: state in shown(app).splitlines()[1])
        await pilot.press("e")
        assert logs(app).log_view.current.number == last


@pytest.mark.parametrize("keys", [("1",), ()])
async def test_help_and_quit_never_leave_the_key_bar(
    client: FakeClient, keys: tuple[str, ...]
) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, *keys)
        for width in (120, 80, 50):
            await pilot.resize_terminal(width, 24)
            await until(pilot, lambda: "q quit" in shown(app).splitlines()[-1])
            bar = shown(app).splitlines()[-1]
            assert "? help" in bar
            assert ("r refresh" in bar) == (width == 120)


async def test_help_has_one_row_for_both_brackets(client: FakeClient) -> None:
    async with make_app(client).run_test(size=(80, 48)) as pilot:
        app = await open_logs(pilot, "question_mark")
        await until(pilot, lambda: "previous or the next engine" in shown(app))
        rows = [line for line in shown(app).splitlines() if "next engine" in line]
        assert len(rows) == 1
        assert "[ ]" in rows[0]
