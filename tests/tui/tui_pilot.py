"""Waiting for what the screen shows, without fixed sleeps."""

import asyncio
from collections.abc import Callable

from textual.pilot import Pilot

from tui.app import ApplianceApp
from tui.screens.dashboard import DashboardScreen
from tui.screens.logs import LogsScreen
from tui.state.connection import Link


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            await pilot.pause()
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def is_live(app: ApplianceApp) -> bool:
    return app.session.feed.connection.link is Link.LIVE


def dashboard(app: ApplianceApp) -> DashboardScreen:
    screen = app.screen_stack[0]
    assert isinstance(screen, DashboardScreen)
    return screen


def logs(app: ApplianceApp) -> LogsScreen:
    screen = app.screen_stack[0]
    assert isinstance(screen, LogsScreen)
    return screen


def shown(app: ApplianceApp) -> str:
    """The text on the terminal."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in strips)


async def open_live(pilot: Pilot[None]) -> ApplianceApp:
    app = pilot.app
    assert isinstance(app, ApplianceApp)
    await until(pilot, lambda: is_live(app))
    return app


async def open_logs(pilot: Pilot[None], *keys: str) -> ApplianceApp:
    app = await open_live(pilot)
    await pilot.press("3")
    await until(pilot, lambda: isinstance(app.screen, LogsScreen))
    await until(pilot, lambda: bool(logs(app).log_view.shown))
    await pilot.press(*keys)
    await pilot.pause()
    return app
