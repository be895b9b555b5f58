"""Each key does what the help says, against a client in process."""

from datetime import timedelta

import msgspec
import pytest
import tui_scenes as scenes
from textual.binding import Binding
from textual.widgets import Button, Input
from tui_fake_client import FakeClient, make_app
from tui_pilot import dashboard, logs, open_live, shown, until

from appliance.protocol.events import ModelChanged, Swapped
from tui.app import ApplianceApp
from tui.client.api import ApiError
from tui.dialogs.command_line import CommandLineDialog
from tui.dialogs.confirm import UnloadDialog
from tui.dialogs.details import DetailsDialog
from tui.dialogs.dialog import Dialog
from tui.dialogs.help import HelpDialog
from tui.dialogs.load_plan import LoadPlanDialog
from tui.screens.batches import BatchesScreen
from tui.screens.dashboard import DashboardScreen
from tui.screens.logs import LogsScreen

SIZE = (80, 24)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(scenes.snapshot())


@pytest.mark.parametrize(
    "owner",
    [
        ApplianceApp,
        DashboardScreen,
        LogsScreen,
        BatchesScreen,
        Dialog,
        DetailsDialog,
        CommandLineDialog,
    ],
)
def test_every_binding_has_an_id_a_group_and_a_tooltip_that_fits(owner: type) -> None:
    for binding in owner.BINDINGS:
        assert isinstance(binding, Binding)
        assert binding.id
        assert binding.group is not None
        assert 0 < len(binding.tooltip) <= 58, binding


def test_binding_ids_are_unique() -> None:
    owners = [
        ApplianceApp,
        DashboardScreen,
        LogsScreen,
        BatchesScreen,
        Dialog,
        DetailsDialog,
        CommandLineDialog,
    ]
    ids = [binding.id for owner in owners for binding in owner.BINDINGS]
    assert len(ids) == len(set(ids))


async def test_the_selection_moves_and_stays_on_its_model(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        screen = dashboard(app)
        assert screen.selected.id == "bge-m3"
        await pilot.press("j", "down", "k")
        assert screen.selected.id == "qwen3-32b"
        await pilot.press("G")
        assert screen.selected.id == "phi4-mini"
        loading = msgspec.structs.replace(scenes.PHI, state=scenes.EngineState.READY)
        client.inbox.put_nowait(ModelChanged(model=loading))
        await until(pilot, lambda: "▶ phi4-mini              ● ready" in shown(app))
        await pilot.press("g")
        assert screen.selected.id == "bge-m3"
        await pilot.press("ctrl+d")
        assert screen.selected.id == "mixtral-8x22b"
        await pilot.press("ctrl+u")
        assert screen.selected.id == "bge-m3"


async def test_a_click_selects_and_a_second_one_opens(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        row = next(i for i, line in enumerate(shown(app).splitlines()) if "phi4-mini" in line)
        await pilot.click(offset=(10, row))
        assert dashboard(app).selected.id == "phi4-mini"
        await pilot.click(offset=(10, row))
        await until(pilot, lambda: isinstance(app.screen, DetailsDialog))


async def test_load_shows_the_plan_and_loads_on_enter(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("G", "L")
        await until(pilot, lambda: "evicts  llama4-scout" in shown(app))
        assert "about 2:10 (median of 3 loads here)" in shown(app)
        assert client.calls == [("plan", "phi4-mini")]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))
        assert client.calls[-1] == ("load", "phi4-mini")


async def test_escape_leaves_the_load_dialog_without_loading(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("L")
        await until(pilot, lambda: isinstance(app.screen, LoadPlanDialog))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))
        assert ("load", "bge-m3") not in client.calls


async def test_a_refused_plan_cannot_be_confirmed(client: FakeClient) -> None:
    client.plan_verdict = msgspec.structs.replace(
        scenes.PLAN, verdict="refuse", message="needs 131.0 GiB, 80.0 GiB at most are possible",
        placement=None, evicts=[], load_s=None,
    )  # fmt: skip
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("L")
        await until(pilot, lambda: "needs 131.0 GiB, 80.0" in shown(app))
        assert app.screen.query_one("#load", Button).disabled


@pytest.mark.parametrize("key", ["L", "U"])
async def test_an_error_of_the_server_is_shown_with_its_hint(client: FakeClient, key: str) -> None:
    client.error = ApiError("There is no room.", "Unload qwen3-32b.", status=409)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press(key)
        if key == "U":
            await until(pilot, lambda: isinstance(app.screen, UnloadDialog))
            await pilot.press("enter")
        await until(pilot, lambda: "There is no room." in shown(app))
        assert "Unload qwen3-32b." in shown(app)


async def test_unload_asks_first(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("j", "U")
        await until(pilot, lambda: "12 requests running" in shown(app))
        assert client.calls == []
        await pilot.press("enter")
        await until(pilot, lambda: client.calls == [("unload", "qwen3-32b")])


async def test_enter_explains_a_failure_and_l_opens_the_failing_line(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("G", "k", "enter")
        await until(pilot, lambda: isinstance(app.screen, DetailsDialog))
        assert "Lower context_length to 16k" in shown(app)
        await until(pilot, lambda: "line 14 of its log says why:" in shown(app))
        lines = shown(app)
        assert "▶ ERROR 03-14 12:00:14" in lines
        assert "step 11 of" in lines
        assert "step 18 of" in lines
        assert "/srv/models/mixtral-8x22b" in lines
        assert (
            lines.index("131.0 GiB, 52.0") < lines.index("Lower context") < lines.index("step 11")
        )
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LogsScreen))
        view = logs(app).log_view
        await until(pilot, lambda: view.current is not None and view.current.number == 14)
        assert not view.follow
        assert "CUDA out of memory. Tried" in shown(app)


async def test_details_of_a_healthy_model(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "Qwen3ForCausalLM" in shown(app))
        assert "engine  eng_bge-m3 · vLLM 0.33.0 · plain start" in shown(app)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))


async def test_x_shows_the_command_line_and_copies_it(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "appliance logs -f bge-m3" in shown(app))
        assert "appliance stop bge-m3" in shown(app)
        assert "appliance unload" not in shown(app)
        await pilot.press("y")
        await pilot.pause()
        assert app.clipboard == "appliance load bge-m3"


async def test_help_lists_every_active_key(client: FakeClient) -> None:
    async with make_app(client).run_test(size=(80, 40)) as pilot:
        app = await open_live(pilot)
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpDialog))
        for tooltip in (b.tooltip for b in DashboardScreen.BINDINGS + ApplianceApp.BINDINGS):
            assert tooltip in shown(app)


async def test_readonly_hides_capitals_and_they_do_nothing(client: FakeClient) -> None:
    async with make_app(client, readonly=True).run_test(size=(80, 40)) as pilot:
        app = await open_live(pilot)
        assert "L Load" not in shown(app)
        assert "read-only" in shown(app)
        await pilot.press("L", "U")
        await pilot.pause()
        assert isinstance(app.screen, DashboardScreen)
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpDialog))
        assert "asks first" not in shown(app)


async def test_the_palette_finds_a_models_log(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("colon")
        await until(pilot, lambda: app.screen.query(Input).first() is not None)
        await pilot.press(*"logs gem")
        await until(pilot, lambda: "logs gemma3-27b" in shown(app))
        await pilot.pause(0.3)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LogsScreen))
        assert "gemma3-27b" in shown(app)


async def test_what_was_swapped_is_told(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        event = Swapped(at=scenes.NOW, model="gemma3-27b", evicted=["phi4-mini"], duration_s=98.0)
        client.inbox.put_nowait(event)
        await until(
            pilot, lambda: "gemma3-27b loaded in the place of phi4-mini (1:38)" in shown(app)
        )


async def test_r_and_enter_try_again(client: FakeClient) -> None:
    client.stream_error = ApiError("bad key", "", status=401)
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = pilot.app
        await until(pilot, lambda: "NOT ALLOWED" in shown(app))
        client.stream_error = None
        await pilot.press("enter")
        await open_live(pilot)


async def test_q_quits_and_lets_go_of_the_client(client: FakeClient) -> None:
    async with make_app(client).run_test(size=SIZE) as pilot:
        await open_live(pilot)
        await pilot.press("q")
        await pilot.pause()
    assert client.calls[-1] == ("aclose", "")


async def test_a_failure_without_its_line_shows_the_last_lines() -> None:
    client = FakeClient(scenes.snapshot(), log=scenes.LOG[:5])
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("G", "k", "enter")
        await until(pilot, lambda: "last lines of its log:" in shown(app))
        assert "torch.OutOfMemoryError" in shown(app)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-60, "the next request or L tries again"),
        (60, "requests try again after 12:05:05, L"),
        (None, "attempt 2 · L tries again"),
    ],
)
async def test_a_failure_says_what_tries_again(seconds: int | None, said: str) -> None:
    retry = None if seconds is None else scenes.NOW + timedelta(seconds=seconds)
    failure = msgspec.structs.replace(scenes.FAILURE, retry_at=retry)
    failed = msgspec.structs.replace(scenes.MIXTRAL, failure=failure)
    client = FakeClient(scenes.snapshot(models=[failed]))
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: said in shown(app))


async def test_details_tell_a_forked_engine() -> None:
    engine = scenes.engine_of(scenes.QWEN, was_forked=True, load_s=3.2)
    client = FakeClient(scenes.snapshot(models=[scenes.QWEN], engines=[engine]))
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "vLLM 0.33.0 · forked · loaded in 0:03" in shown(app))


async def test_a_failure_says_what_the_series_began_with() -> None:
    failed = msgspec.structs.replace(scenes.MIXTRAL, first_failure=scenes.FIRST_FAILURE)
    client = FakeClient(scenes.snapshot(models=[failed]))
    async with make_app(client).run_test(size=(100, 30)) as pilot:
        app = await open_live(pilot)
        await pilot.press("enter")
        await until(
            pilot, lambda: "failed first at 11:55:05, files missing: model-000" in shown(app)
        )
        assert "Let the server's user read the directory." in shown(app)
        assert "line 88 of its log: appliance logs eng_mixtral-1" in shown(app)


async def test_a_first_failure_that_says_the_same_is_not_told_twice() -> None:
    failed = msgspec.structs.replace(scenes.MIXTRAL, first_failure=scenes.FAILURE)
    client = FakeClient(scenes.snapshot(models=[failed]))
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "attempt 2" in shown(app))
        assert "failed first" not in shown(app)


async def test_the_failing_line_is_one_of_the_engine_that_failed() -> None:
    failure = msgspec.structs.replace(scenes.FAILURE, engine_id="eng_old")
    failed = msgspec.structs.replace(scenes.MIXTRAL, failure=failure)
    client = FakeClient(scenes.snapshot(models=[failed]))
    async with make_app(client).run_test(size=SIZE) as pilot:
        app = await open_live(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "line 14 of its log says why:" in shown(app))
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LogsScreen))
        await until(pilot, lambda: client.log_engines[-1] == "eng_old")
        assert client.log_engines[0] == "eng_old"
