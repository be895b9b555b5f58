"""Pictures of the screens in their states; time, ids and ages are frozen."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import tui_scenes as scenes
from textual.pilot import Pilot
from tui_fake_client import FakeClient, FrozenClock, make_app
from tui_pilot import dashboard, open_live, open_logs, shown, until

from appliance.protocol.events import Swapped, Transition
from appliance.protocol.system import Snapshot, Totals
from tui.app import ApplianceApp
from tui.client.api import ApiError, UnreachableError
from tui.client.target import START_HINT
from tui.screens.dashboard import DashboardScreen
from tui.screens.logs import LogsScreen
from tui.state.connection import Link

SMALL, LARGE = (80, 24), (160, 48)
Compare = Callable[..., bool]
Before = Callable[[Pilot[None]], Awaitable[Any]]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogsScreen, "SEARCH_DELAY_S", 0.0)
    monkeypatch.setattr(DashboardScreen, "STRIP_DELAY_S", 0.0)


def clock_of(app: ApplianceApp) -> FrozenClock:
    assert isinstance(app.session.clock, FrozenClock)
    return app.session.clock


def after(*keys: str, contains: str = "") -> Before:
    async def run(pilot: Pilot[None]) -> None:
        app = await open_live(pilot)
        await pilot.press(*keys)
        await until(pilot, lambda: contains in shown(app))
        strip = dashboard(app)._strip
        await until(pilot, lambda: strip.engine is None or bool(strip._lines))
        await asyncio.sleep(0)

    return run


def log_after(*keys: str, contains: str = "") -> Before:
    async def run(pilot: Pilot[None]) -> None:
        app = await open_logs(pilot, *keys)
        await until(pilot, lambda: contains in shown(app))

    return run


async def waited(pilot: Pilot[None], contains: str) -> None:
    await until(pilot, lambda: contains in shown(pilot.app))


async def go_stale(pilot: Pilot[None]) -> None:
    app = await open_live(pilot)
    clock_of(app).seconds += 12.0
    app.session.feed.tick()
    app._changed()
    await until(pilot, lambda: "STALE 10s" in shown(app))


def named(value: object) -> str:
    """Readable names of the pictures."""
    return f"{value[0]}x{value[1]}" if isinstance(value, tuple) else str(value)


def happenings(client: FakeClient) -> None:
    at = scenes.NOW
    client.inbox.put_nowait(
        Transition(
            at=at, model="qwen3-32b", engine_id="e", before=scenes.EngineState.LOADING,
            after=scenes.EngineState.READY, reason="loaded in 98 s", duration_s=98.0,
        )
    )  # fmt: skip
    client.inbox.put_nowait(Swapped(at=at, model="gemma3-27b", evicted=["phi4"], duration_s=98.0))


def busy(snapshot: Snapshot) -> Snapshot:
    waiting = msgspec.structs.replace(
        scenes.PHI, state=scenes.EngineState.QUEUED, waiting=4,
        waits_for="gpu 0 until qwen3-32b has answered 12 requests",
    )  # fmt: skip
    models = [m for m in snapshot.models if m.id != waiting.id]
    return msgspec.structs.replace(snapshot, models=[*models, waiting])


@pytest.mark.parametrize(
    ("state", "size"),
    [
        *((state, SMALL) for state in ("live", "empty", "connecting", "stale", "loading")),
        *((state, LARGE) for state in ("live", "loading")),
        ("failed", SMALL),
    ],
    ids=named,
)
def test_dashboard(snap_compare: Compare, state: str, size: tuple[int, int]) -> None:
    client = FakeClient(scenes.snapshot())
    before: Before = after()
    if state == "live":
        happenings(client)
        before = after(contains="in the place of")
    elif state == "empty":
        client = FakeClient(scenes.empty())
    elif state == "connecting":
        client = FakeClient(None)

        async def before(pilot: Pilot[None]) -> None:
            await waited(pilot, "connecting")

    elif state == "stale":
        before = go_stale
    elif state == "loading":
        client = FakeClient(busy(scenes.snapshot()))
        before = after("j", "j", "j")
    elif state == "failed":
        before = after("G", "k", contains="Enter: why ")
    assert snap_compare(make_app(client), terminal_size=size, run_before=before)


@pytest.mark.parametrize(
    ("state", "size"),
    [("follow", SMALL), ("follow", LARGE), ("error", SMALL), ("filter", SMALL), ("wrap", LARGE)],
    ids=named,
)
def test_logs(snap_compare: Compare, state: str, size: tuple[int, int]) -> None:
    keys = {
        "follow": (),
        "error": ("e",),
        "filter": ("slash", *"err"),
        "wrap": ("e", "w", "m", "j", "j"),
    }[state]
    contains = "/err  2 of 3,000" if state == "filter" else ""
    before = log_after(*keys, contains=contains)
    client = FakeClient(scenes.snapshot())
    assert snap_compare(make_app(client), terminal_size=size, run_before=before)


def test_dropped_lines_of_a_log(snap_compare: Compare) -> None:
    client = FakeClient(scenes.snapshot())
    client.dropped = range(15, 2986)
    before = log_after("g", contains="step 1 of")
    assert snap_compare(make_app(client), terminal_size=SMALL, run_before=before)


@pytest.mark.parametrize("count", [8, 16])
def test_other_numbers_of_devices(snap_compare: Compare, count: int) -> None:
    client = FakeClient(scenes.snapshot(devices=scenes.many_devices(count)))
    assert snap_compare(make_app(client), terminal_size=SMALL, run_before=after())


def test_sixteen_devices_on_a_large_terminal(snap_compare: Compare) -> None:
    client = FakeClient(scenes.snapshot(devices=scenes.many_devices(16)))
    assert snap_compare(make_app(client), terminal_size=LARGE, run_before=after())


@pytest.mark.parametrize("devices", [scenes.simulated(), scenes.cpu()], ids=["simulated", "cpu"])
def test_devices_that_are_no_gpu_say_so(snap_compare: Compare, devices: list[Any]) -> None:
    client = FakeClient(scenes.snapshot(devices=devices, alerts=[]))
    assert snap_compare(make_app(client), terminal_size=SMALL, run_before=after())


@pytest.mark.parametrize("state", ["warm", "failed"])
def test_launcher(snap_compare: Compare, state: str) -> None:
    warm, failed = [scenes.WARM], [scenes.NOT_WARM]
    launchers = warm if state == "warm" else failed
    server = msgspec.structs.replace(scenes.SERVER, launchers=launchers)
    devices = scenes.cpu(4 * scenes.GIB if state == "warm" else 0)
    client = FakeClient(scenes.snapshot(server=server, devices=devices, alerts=[]))
    assert snap_compare(make_app(client), terminal_size=SMALL, run_before=after())


def test_tiny(snap_compare: Compare) -> None:
    client = FakeClient(scenes.snapshot())
    assert snap_compare(make_app(client), terminal_size=(50, 14), run_before=after())


def test_readonly(snap_compare: Compare) -> None:
    app = make_app(FakeClient(scenes.snapshot()), readonly=True)
    assert snap_compare(app, terminal_size=SMALL, run_before=after())


def test_ascii(snap_compare: Compare) -> None:
    app = make_app(FakeClient(scenes.snapshot()), is_ascii=True)
    assert snap_compare(app, terminal_size=SMALL, run_before=after("L", contains="evicts"))


def test_colourless(snap_compare: Compare) -> None:
    app = make_app(FakeClient(scenes.snapshot()), theme="ansi-dark")
    assert snap_compare(app, terminal_size=SMALL, run_before=after())


def test_help(snap_compare: Compare) -> None:
    app = make_app(FakeClient(scenes.snapshot()))
    before = after("question_mark", contains="Everywhere")
    assert snap_compare(app, terminal_size=SMALL, run_before=before)


def test_load_dialog(snap_compare: Compare) -> None:
    app = make_app(FakeClient(scenes.snapshot()))
    before = after("G", "L", contains="evicts")
    assert snap_compare(app, terminal_size=SMALL, run_before=before)


def test_failure_dialog(snap_compare: Compare) -> None:
    app = make_app(FakeClient(scenes.snapshot()))
    before = after("G", "k", "enter", contains="says why")
    assert snap_compare(app, terminal_size=SMALL, run_before=before)


def test_failure_dialog_with_the_first_failure(snap_compare: Compare) -> None:
    mixtral = msgspec.structs.replace(scenes.MIXTRAL, first_failure=scenes.FIRST_FAILURE)
    app = make_app(FakeClient(scenes.snapshot(models=[mixtral])))
    before = after("enter", contains="says why")
    assert snap_compare(app, terminal_size=(100, 30), run_before=before)


def test_unauthorised(snap_compare: Compare) -> None:
    client = FakeClient(scenes.snapshot())
    client.stream_error = ApiError("This key may not manage.", "Use a key of scope manage.",
                                   status=403)  # fmt: skip

    async def before(pilot: Pilot[None]) -> None:
        await waited(pilot, "NOT ALLOWED")

    assert snap_compare(make_app(client), terminal_size=SMALL, run_before=before)


def test_version_mismatch_is_readonly(snap_compare: Compare) -> None:
    server = msgspec.structs.replace(scenes.SERVER, api_version=99)
    client = FakeClient(scenes.snapshot(server=server))

    async def before(pilot: Pilot[None]) -> None:
        await waited(pilot, "Version mismatch")

    assert snap_compare(make_app(client), terminal_size=SMALL, run_before=before)


def test_disconnected(snap_compare: Compare) -> None:
    client = FakeClient(scenes.snapshot(totals=Totals()))
    app = make_app(client)
    app.session.feed._chance = lambda: 1.0

    async def before(pilot: Pilot[None]) -> None:
        await open_live(pilot)
        feed = app.session.feed
        feed._lost("no answer: Connection refused", "Start it with `appliance serve`.")
        clock_of(app).seconds += 61.0
        feed.tick()
        assert feed.connection.link is Link.DISCONNECTED
        await waited(pilot, "DISCONNECTED")

    assert snap_compare(app, terminal_size=SMALL, run_before=before)


@pytest.mark.parametrize("size", [SMALL, (50, 14)], ids=named)
async def test_ascii_means_ascii(size: tuple[int, int]) -> None:
    client = FakeClient(busy(scenes.snapshot()))
    happenings(client)
    async with make_app(client, is_ascii=True).run_test(size=size) as pilot:
        app = await open_live(pilot)
        await pilot.press("G")
        assert shown(app).isascii(), [c for c in shown(app) if not c.isascii()]
        await pilot.press("enter")
        await waited(pilot, "says why")
        assert shown(app).isascii(), [c for c in shown(app) if not c.isascii()]
        await pilot.press("escape", "3")
        await waited(pilot, "FOLLOW")
        assert shown(app).isascii(), [c for c in shown(app) if not c.isascii()]


async def test_buttons_stay_in_sight_on_a_small_terminal() -> None:
    app = make_app(FakeClient(scenes.snapshot()))
    async with app.run_test(size=(50, 12)) as pilot:
        await open_live(pilot)
        await pilot.press("G", "k", "enter")
        await waited(pilot, "Close")
        await pilot.press("down", "down", "down")
        await waited(pilot, "attempt 2")


async def test_reconnecting_counts_down() -> None:
    client = FakeClient(scenes.snapshot())
    client.stream_error = UnreachableError("no answer", "start it")
    app = make_app(client)
    app.session.feed._chance = lambda: 1.0
    async with app.run_test(size=SMALL) as pilot:
        await waited(pilot, "retry 1 in 0.2s")


async def test_a_server_that_is_gone_brings_the_hint_after_ten_seconds() -> None:
    client = FakeClient(scenes.snapshot())
    app = make_app(client)
    async with app.run_test(size=SMALL) as pilot:
        await open_live(pilot)
        feed = app.session.feed
        feed._lost("no answer: Connection refused", START_HINT)
        await waited(pilot, "retry 1")
        assert "appliance serve" not in shown(app)
        clock_of(app).seconds += 10.0
        feed.tick()
        app._changed()
        await waited(pilot, "No server; this picture is old. Start it with `appliance serve`")
        await pilot.press("3")
        await waited(pilot, "FOLLOW")
        await waited(pilot, "Start it with `appliance serve`")
