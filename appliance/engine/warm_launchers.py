"""Which engines are forked, and from which launcher.

Nothing depends on warm starts: an environment that was not checked, one whose packages changed
since, a launcher that fails, or an engine with environment variables of its own is started in the
plain way.
"""

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path

from appliance.engine.command import build_base_env
from appliance.engine.environments import (
    EnvironmentRecord,
    may_start_warm,
    packages_stamp,
    preload_modules,
)
from appliance.engine.warm_launcher import WarmLauncher
from appliance.protocol.devices import DeviceKind
from appliance.protocol.launchers import Launcher
from appliance.units import MIB

_WORTH_TELLING = 16 * MIB


class WarmLaunchers:
    """One launcher for each engine environment in use; `is_enabled` follows the settings."""

    def __init__(self, *, is_enabled: bool, on_change: Callable[[], None]) -> None:
        self._is_enabled = is_enabled
        self._on_change = on_change
        self._launchers: dict[str, WarmLauncher] = {}
        self._told_bytes = 0
        self._retiring: set[asyncio.Task[None]] = set()

    def views(self) -> list[Launcher]:
        """The launchers as others see them."""
        return [launcher.view() for launcher in self._launchers.values()]

    async def measure(self) -> int:
        """Memory of all launchers in bytes; tells about it when it has changed much."""
        launchers = list(self._launchers.values())
        for launcher in launchers:
            await asyncio.to_thread(launcher.measure)
        total = sum(launcher.view().memory_bytes for launcher in launchers)
        if abs(total - self._told_bytes) >= _WORTH_TELLING:
            self._told_bytes = total
            self._on_change()
        return total

    async def find(
        self, environment: EnvironmentRecord, kind: DeviceKind, cache: Path
    ) -> WarmLauncher | None:
        """A launcher that is warm or warming for this environment; None: start in the plain way."""
        if not self._is_enabled:
            return None
        stamp = await asyncio.to_thread(packages_stamp, environment.directory)
        launcher = self._launchers.get(environment.name)
        if launcher is not None and launcher.stamp != stamp:
            # It has imported packages that are no longer there.
            self._retire(environment.name)
            launcher = None
        modules = preload_modules(environment)
        if modules is None or not may_start_warm(environment, stamp):
            return None
        if launcher is None:
            launcher = WarmLauncher(environment, modules, stamp=stamp, on_change=self._on_change)
            self._launchers[environment.name] = launcher
        launcher.begin(build_base_env(kind, environment, cache, os.environ))
        return launcher

    def retire_unused(self, in_use: Collection[str]) -> None:
        """End the launchers of environments that no model is started in any more."""
        for name in set(self._launchers) - set(in_use):
            self._retire(name)

    async def stop(self) -> None:
        """End all launchers."""
        for name in list(self._launchers):
            self._retire(name)
        await asyncio.gather(*self._retiring)

    def _retire(self, name: str) -> None:
        """Engines that it forked go on."""
        task = asyncio.create_task(self._launchers.pop(name).stop())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
