"""The screen of batches: its pictures, and what its keys do."""

from collections.abc import Callable

import msgspec
import pytest
import tui_scenes as scenes
from textual.pilot import Pilot
from tui_fake_client import FakeClient, make_app
from tui_pilot import dashboard, open_live, shown, until

from appliance.protocol.batches import BatchProgress, RequestCounts
from appliance.protocol.events import BatchChanged
from tui.app import ApplianceApp
from tui.client.api import ApiError
from tui.dialogs.batch import BatchActionDialog, BatchDialog, consequence
from tui.dialogs.command_line import CommandLineDialog
from tui.screens.batches import BatchesScreen
from tui.screens.dashboard import DashboardScreen

SMALL, WIDE, LARGE = (80, 24), (120, 40), (160, 48)
Compare = Callable[..., bool]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(scenes.snapshot(batches=scenes.BATCHES))


def batches(app: ApplianceApp) -> BatchesScreen:
    screen = app.screen_stack[0]
    assert isinstance(screen, BatchesScreen)
    return screen


async def open_batches(pilot: Pilot[None], *keys: str, contains: str = "BATCH ") -> ApplianceApp:
    app = await open_live(pilot)
    await pilot.press("4")
    await until(pilot, lambda: isinstance(app.screen, BatchesScreen) and "BATCH " in shown(app))
    await pilot.press(*keys)
    await until(pilot, lambda: contains in shown(app))
    return app


@pytest.mark.parametrize(
    ("size", "keys", "contains"),
    [
        (SMALL, (), "submit"),
        (SMALL, ("j",), "waits"),
        (WIDE, ("G", "k"), "ended"),
        (LARGE, ("g", "j", "j", "j"), "34 s for engines"),
        (SMALL, ("G", "k", "enter"), "request-1"),
        (SMALL, ("G", "enter"), "line 1999"),
        (SMALL, ("G", "g", "j", "j", "j", "C"), "answers that are there"),
        (SMALL, ("G", "k", "R"), "12 lines without an answer"),
    ],
)
def test_pictures(
    snap_compare: Compare,
    client: FakeClient,
    size: tuple[int, int],
    keys: tuple[str, ...],
    contains: str,
) -> None:
    if contains == "submit":
        client = FakeClient(scenes.snapshot())
    told = "mixtral-8x22b: needs" if contains == "waits" else contains

    async def before(pilot: Pilot[None]) -> None:
        await open_batches(pilot, *keys, contains=told)

    assert snap_compare(make_app(client), terminal_size=size, run_before=before)


def test_picture_with_ascii(snap_compare: Compare, client: FakeClient) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await open_batches(pilot, "G", "g")

    app = make_app(client, is_ascii=True, readonly=True)
    assert snap_compare(app, terminal_size=WIDE, run_before=before)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_dashboard_with_batches(
    snap_compare: Compare,
    client: FakeClient,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DashboardScreen, "STRIP_DELAY_S", 0.0)

    async def before(pilot: Pilot[None]) -> None:
        app = await open_live(pilot)
        await until(pilot, lambda: "81%" in shown(app))
        strip = dashboard(app)._strip
        await until(pilot, lambda: strip.engine is None or bool(strip._lines))

    assert snap_compare(make_app(client), terminal_size=size, run_before=before)


async def test_open_batches_come_first_and_the_selection_stays_on_its_batch(
    client: FakeClient,
) -> None:
    async with make_app(client).run_test(size=SMALL) as pilot:
        app = await open_batches(pilot)
        rows = [line[3:] for line in shown(app).splitlines() if line[3:].startswith("batch_")]
        assert [row[len("batch_")] for row in rows] == ["4", "3", "2", "1", "7", "6", "5"]
        assert batches(app).selected == scenes.JUDGED
        await pilot.press("j", "j", "j")
        assert batches(app).selected == scenes.RUNNING
        over = msgspec.structs.replace(scenes.JUDGED, batch=scenes.CUT.batch)
        client.inbox.put_nowait(BatchChanged(batch=over))
        counts = RequestCounts(total=50_000, completed=41_000, failed=11)
        further = msgspec.structs.replace(
            scenes.RUNNING,
            batch=msgspec.structs.replace(scenes.RUNNING.batch, request_counts=counts),
        )
        client.inbox.put_nowait(BatchChanged(batch=further))
        await until(pilot, lambda: "41,011/50,000" in shown(app))
        assert batches(app).selected == further
        await pilot.press("escape")
        await until(pilot, lambda: "Models (" in shown(app))


@pytest.mark.parametrize(
    ("keys", "chosen", "action"),
    [
        (("g", "j", "j", "P"), scenes.HELD, "resume"),
        (("g", "j", "j", "j", "P"), scenes.RUNNING, "pause"),
    ],
)
async def test_a_batch_is_held_and_goes_on_after_a_question(
    client: FakeClient, keys: tuple[str, ...], chosen: BatchProgress, action: str
) -> None:
    async with make_app(client).run_test(size=SMALL) as pilot:
        app = await open_batches(pilot, *keys)
        await until(pilot, lambda: isinstance(app.screen, BatchActionDialog))
        assert action not in [call for call, _ in client.calls]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, BatchesScreen))
        assert client.calls[-1] == (action, chosen.batch.id)


async def test_cancelling_takes_more_than_one_key_and_a_refusal_is_shown(
    client: FakeClient,
) -> None:
    async with make_app(client).run_test(size=SMALL) as pilot:
        app = await open_batches(pilot, "C")
        await until(pilot, lambda: isinstance(app.screen, BatchActionDialog))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, BatchesScreen))
        assert "cancel" not in [call for call, _ in client.calls]
        client.error = ApiError("it is over", "Look again.", status=409)
        await pilot.press("C")
        await until(pilot, lambda: isinstance(app.screen, BatchActionDialog))
        await pilot.press("left", "enter")
        await until(pilot, lambda: "it is over" in shown(app))
        assert ("cancel", scenes.JUDGED.batch.id) in client.calls
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, BatchesScreen))


async def test_failed_lines_make_a_new_batch_after_a_question(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SMALL, notifications=True) as pilot:
        app = await open_batches(pilot, "G", "k", "R")
        await until(pilot, lambda: isinstance(app.screen, BatchActionDialog))
        assert "retry" not in [call for call, _ in client.calls]
        await pilot.press("enter")
        await until(pilot, lambda: "batch_89f2c5e8: " in shown(app))
        assert client.calls[-1] == ("retry", scenes.DONE.batch.id)
        assert isinstance(app.screen, BatchesScreen)


@pytest.mark.parametrize(
    ("keys", "can_retry", "can_save"),
    [
        (("g",), False, False),
        (("G",), False, False),
        (("G", "k"), True, True),
        (("G", "k", "k"), False, False),
    ],
    ids=["validating", "failed", "completed", "cancelled"],
)
async def test_only_failed_lines_and_answers_that_are_there_are_offered(
    client: FakeClient, keys: tuple[str, ...], can_retry: bool, can_save: bool
) -> None:
    async with make_app(client).run_test(size=WIDE) as pilot:
        app = await open_batches(pilot, *keys)
        bar = shown(app).splitlines()[-1]
        assert ("R Retry" in bar, "o output" in bar) == (can_retry, can_save)


async def test_what_is_over_cannot_be_changed(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SMALL) as pilot:
        app = await open_batches(pilot, "G")
        assert batches(app).selected == scenes.BAD_FILE
        await pilot.press("P", "C")
        assert isinstance(app.screen, BatchesScreen)
        assert "Pause" not in shown(app).splitlines()[-1]
        await pilot.press("g")
        assert "Pause" in shown(app).splitlines()[-1]


async def test_readonly_changes_nothing(client: FakeClient) -> None:
    async with make_app(client, readonly=True).run_test(size=SMALL) as pilot:
        app = await open_batches(pilot, "P", "C", "G", "k", "R", "o")
        assert isinstance(app.screen, BatchesScreen)
        assert batches(app).selected == scenes.DONE
        assert "Retry" not in shown(app)


async def test_foreign_text_steers_no_terminal(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SMALL) as pilot:
        app = await open_batches(pilot, "G", "k", "enter", contains="request-1")
        assert isinstance(app.screen, BatchDialog)
        assert "request-[b]: not run never ran" in shown(app)
        await pilot.press("escape", "x")
        await until(pilot, lambda: "appliance batch retry batch_69f2c5e8" in shown(app))
        assert isinstance(app.screen, CommandLineDialog)


def test_consequences_are_told_in_numbers() -> None:
    assert "12 lines without an answer" in consequence(scenes.DONE, "retry")
    assert "9,488 lines will have no answer" in consequence(scenes.RUNNING, "cancel")
    assert "nothing has run" in consequence(scenes.JUDGED, "cancel")
    assert "(128)" in consequence(scenes.RUNNING, "pause")
    assert "1,100 lines go on" in consequence(scenes.HELD, "resume")
