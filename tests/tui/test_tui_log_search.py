"""The log screen and lines that it does not hold: dropped ones, and matches of the filter."""

from pathlib import Path

import pytest
import tui_scenes as scenes
from tui_fake_client import FakeClient, make_app
from tui_fake_server import FakeServer
from tui_pilot import logs, open_logs, shown, until

from tui.client.http import HttpClient
from tui.client.target import Target
from tui.screens.logs import LogsScreen

SIZE = (100, 24)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogsScreen, "FLUSH_S", 0.001)
    monkeypatch.setattr(LogsScreen, "SEARCH_DELAY_S", 0.0)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(scenes.snapshot())


def searches(client: FakeClient) -> list[str]:
    return [what for call, what in client.calls if call == "search_log"]


async def test_older_lines_come_from_before_those_that_were_dropped(client: FakeClient) -> None:
    client.dropped = range(101, 2901)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        view = logs(app).log_view
        assert view.buffer.first_number == 2901
        await pilot.press("g")
        await until(pilot, lambda: view.buffer.first_number == 1)
        assert len(view.buffer.lines) == 201
        view.go_to_line(2900)
        said = " 2,800 lines were dropped (no longer kept on the server) "
        await until(pilot, lambda: said in shown(app))
        assert shown(app).index("step 100 of") < shown(app).index(said)


async def test_the_start_of_what_is_kept_is_told(client: FakeClient) -> None:
    client.dropped = range(1, 2995)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot)
        assert " 2,994 lines were dropped (" in shown(app)
        await pilot.press("g")
        await until(pilot, lambda: logs(app).log_view.cursor == 0)
        assert " 2,994 lines were dropped (" in shown(app)


async def test_a_filter_searches_lines_that_are_not_held(client: FakeClient) -> None:
    client.step = 400
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"core.py:700", "enter")
        await until(pilot, lambda: "/core.py:700  2 of 3,000" in shown(app))
        assert "CUDA out of memory. Tried" in shown(app)
        assert searches(client)[-3:] == [
            "py:700 1001-1000", "py:700 601-1000", "py:700 201-1000"
        ]  # fmt: skip
        view = logs(app).log_view
        assert view.buffer.first_number == 1001
        # Leaving the filter on a match goes to its line.
        await pilot.press("g", "escape")
        await until(pilot, lambda: view.filter is None and view.current.number == 14)
        assert view.buffer.first_number == 1
        assert "step 13 of" in shown(app)


async def test_a_page_of_matches_is_enough_until_more_is_looked_for(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.client.log_reader.PAGE", 100)
    client.step = 60
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"step", "enter")
        await until(pilot, lambda: "from line 881" in shown(app))
        assert searches(client)[-2:] == ["step 1001-100", "step 941-100"]
        await pilot.press("g")
        await until(pilot, lambda: "from line 761" in shown(app))
        assert logs(app).log_view.current.number == 881


async def test_what_the_server_cannot_search_counts_from_the_first_line_held(
    client: FakeClient,
) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"(a request|CUDA)", "enter")
        await until(pilot, lambda: "1 from line 1,001" in shown(app))
        assert searches(client) == ["a 1001-1000"] * len(searches(client))


async def test_a_search_tells_of_dropped_lines(client: FakeClient) -> None:
    client.dropped = range(11, 511)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"cuda", "enter")
        await until(pilot, lambda: "/cuda  0 of 3,000, 500 dropped" in shown(app))


async def test_another_log_is_searched_with_the_same_filter(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "slash", *"cuda", "enter")
        await until(pilot, lambda: "/cuda  1 of 3,000" in shown(app))
        before = len(searches(client))
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: len(searches(client)) == before + 1)
        await until(pilot, lambda: "/cuda  1 of 3,000" in shown(app))


async def test_a_line_that_is_too_far_back_is_told(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE, notifications=True) as pilot:
        app = await open_logs(pilot)
        view = logs(app).log_view
        view.buffer._capacity = 2500
        await pilot.press("slash", *"cuda", "enter")
        await until(pilot, lambda: "/cuda  1 of 3,000" in shown(app))
        await pilot.press("g", "escape")
        await until(pilot, lambda: "Line 14 is too far back: 2,500 lines are held." in shown(app))
        assert view.current.number == 501


async def test_how_the_server_is_asked(tmp_path: Path) -> None:
    socket = str(tmp_path / "admin.sock")
    server = FakeServer()
    await server.start(socket)
    client = HttpClient(Target(socket=socket))
    try:
        window = await client.log_before("e/1", 101, 10)
        assert (window.first_line, len(window.lines)) == (91, 10)
        found = await client.search_log("e/1", "a b&c", 101, 10)
        assert found.is_complete
        assert [match.line for match in (await client.search_log("e", "cuda", 99, 9)).matches] == [
            14
        ]
    finally:
        await client.aclose()
        await server.stop()
    assert server.requests[0] == "GET /admin/v1/engines/e%2F1/logs?before=101&tail=10"
    assert "grep=a%20b%26c" in server.requests[1].replace("+", "%20")


async def test_the_first_line_is_fetched_over_many_pages() -> None:
    client = FakeClient(scenes.snapshot(), scenes.LOG * 3)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_logs(pilot, "g")
        view = logs(app).log_view
        await until(pilot, lambda: view.current is not None and view.current.number == 1)
        assert len(view.buffer.lines) == 9000
