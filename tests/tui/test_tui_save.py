"""Saving the answers of a batch from the terminal UI."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tui_scenes as scenes
from textual.pilot import Pilot
from textual.widgets import Input
from tui_fake_client import FakeClient, make_app
from tui_pilot import open_live, shown, until

from tui.app import ApplianceApp
from tui.client.api import UnreachableError
from tui.dialogs.save import SaveDialog
from tui.screens.batches import BatchesScreen

SIZE = (80, 24)
NAME = "batch_69f2c5e8_answers.jsonl"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(scenes.snapshot(batches=scenes.BATCHES))


async def ask(pilot: Pilot[None]) -> ApplianceApp:
    app = await open_live(pilot)
    await pilot.press("4")
    await until(pilot, lambda: isinstance(app.screen, BatchesScreen) and "BATCH " in shown(app))
    await pilot.press("G", "k", "o")
    await until(pilot, lambda: isinstance(app.screen, SaveDialog) and "1,988" in shown(app))
    return app


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def entry(app: ApplianceApp) -> Input:
    return app.screen.query_one("#path", Input)


def test_picture(snap_compare: Callable[..., bool], client: FakeClient) -> None:
    async def before(pilot: Pilot[None]) -> None:
        app = await ask(pilot)
        # Not the temporary directory of this run.
        entry(app).value = f"/home/ada/{NAME}"
        await pilot.pause()

    assert snap_compare(make_app(client), terminal_size=SIZE, run_before=before)


async def test_answers_are_saved_under_the_name_that_is_offered(
    client: FakeClient, here: Path
) -> None:
    async with make_app(client).run_test(size=SIZE, notifications=True) as pilot:
        app = await ask(pilot)
        assert entry(app).value == str(here / NAME)
        assert ("file_content", "file-aa10") not in client.calls
        await pilot.press("enter")
        await until(pilot, lambda: "Saved 1,988 of 2,000 answers in" in shown(app))
        assert isinstance(app.screen, BatchesScreen)
    assert (here / NAME).read_bytes() == b"".join(client.pieces)
    assert names(here) == [NAME]


async def test_a_name_is_offered_that_is_free_and_a_file_is_never_overwritten(
    client: FakeClient, here: Path
) -> None:
    (here / NAME).write_text("precious")
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await ask(pilot)
        free = here / "batch_69f2c5e8_answers-2.jsonl"
        assert entry(app).value == str(free)
        entry(app).value = NAME
        await pilot.press("enter")
        await until(pilot, lambda: "Give another name." in shown(app))
        assert app.focused is entry(app)
        entry(app).value = str(free)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, BatchesScreen))
    assert (here / NAME).read_text() == "precious"
    assert free.read_bytes() == b"".join(client.pieces)


async def test_letters_go_into_the_name_and_escape_saves_nothing(
    client: FakeClient, here: Path
) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await ask(pilot)
        entry(app).value = ""
        await pilot.press(*"qjkh")
        assert entry(app).value == "qjkh"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, BatchesScreen))
        assert ("file_content", "file-aa10") not in client.calls
    assert names(here) == []


async def test_a_download_that_breaks_leaves_nothing_and_can_be_tried_again(
    client: FakeClient, here: Path
) -> None:
    client.cut_off = UnreachableError("the link broke", "Try again.")
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await ask(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "the link broke" in shown(app))
        assert names(here) == []
        client.cut_off = None
        await until(pilot, lambda: app.focused is entry(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, BatchesScreen))
    assert names(here) == [NAME]
