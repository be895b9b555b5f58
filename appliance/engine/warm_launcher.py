"""The server's side of warm starts: one launcher for each engine environment that is in use.

Nothing depends on it: an environment that it was not checked with, a launcher that fails, or an
engine with environment variables of its own is started in the plain way.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from appliance.engine import warm
from appliance.engine.child import ForkedGuardian
from appliance.engine.command import build_base_env
from appliance.engine.environments import EnvironmentRecord
from appliance.engine.proctree import ENGINE_VARIABLE
from appliance.protocol.devices import DeviceKind

logger = logging.getLogger(__name__)

_READY_S = 120.0
_FORK_S = 10.0
# A launcher that failed is tried again when an engine is started after this.
_RETRY_S = 300.0
_MESSAGE_BYTES = 1 << 20


class LauncherError(Exception):
    """This engine has to be started in the plain way."""


class WarmLauncher:
    """A process that has imported one vLLM build; `launch` forks an engine from it."""

    def __init__(self, environment: EnvironmentRecord, modules: list[str]) -> None:
        self.environment = environment
        self._modules = modules
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._warming: asyncio.Task[None] | None = None
        self._failed_at: float | None = None

    @property
    def is_warm(self) -> bool:
        """Whether an engine can be forked now."""
        return self._socket is not None

    def begin(self, env: Mapping[str, str]) -> None:
        """Start to warm up, unless it is warm, warming, or failed a moment ago."""
        is_warming = self._warming is not None and not self._warming.done()
        has_just_failed = (
            self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_S
        )
        if not (self.is_warm or is_warming or has_just_failed):
            self._warming = asyncio.create_task(self._warm_up(dict(env)), name="launcher")

    async def launch(
        self, argv: list[str], env: Mapping[str, str], cwd: Path, *, log: int, grace_s: float
    ) -> ForkedGuardian:
        """Fork an engine; `log` is the descriptor that it writes to. Raises LauncherError."""
        if self._warming is not None:
            await asyncio.wait({self._warming})
        request = {
            "name": env.get(ENGINE_VARIABLE, ""),
            "argv": argv,
            "env": dict(env),
            "cwd": str(cwd),
            "grace_s": grace_s,
        }
        control_read, control_write = os.pipe()
        status_read, status_write = os.pipe()
        try:
            async with self._lock, asyncio.timeout(_FORK_S):
                descriptors = [log, control_read, status_write]
                pid = await asyncio.to_thread(self._ask, json.dumps(request).encode(), descriptors)
        except (OSError, ValueError, TimeoutError) as error:
            os.close(control_write)
            os.close(status_read)
            await self._give_up(f"it does not answer: {error}")
            raise LauncherError from error
        finally:
            os.close(control_read)
            os.close(status_write)
        return ForkedGuardian(pid, control_write, status_read)

    async def stop(self) -> None:
        """End the launcher; engines go on."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        await self._end()

    def _ask(self, request: bytes, descriptors: list[int]) -> int:
        if self._socket is None:
            raise OSError("it is not there")
        socket.send_fds(self._socket, [request], descriptors)
        return int(json.loads(self._socket.recv(_MESSAGE_BYTES))["pid"])

    async def _warm_up(self, env: dict[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_READY_S)
        try:
            self._process = await asyncio.create_subprocess_exec(
                self.environment.launch[0],
                "-I",
                str(Path(warm.__file__)),
                *self._modules,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                # One thread, so that a fork breaks nothing.
                env={**env, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            theirs.close()
            report = json.loads(await asyncio.to_thread(ours.recv, _MESSAGE_BYTES))
        except (OSError, ValueError) as error:
            theirs.close()
            ours.close()
            await self._give_up(f"it did not start: {error}")
            return
        if report["unsafe"]:
            ours.close()
            await self._give_up("; ".join(report["unsafe"]))
            return
        ours.settimeout(_FORK_S)
        self._socket = ours
        logger.info(
            "launcher.warm environment=%s import_s=%s", self.environment.name, report["import_s"]
        )

    async def _give_up(self, reason: str) -> None:
        self._failed_at = time.monotonic()
        logger.warning("launcher.failed environment=%s reason=%s", self.environment.name, reason)
        await self._end()

    async def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class WarmLaunchers:
    """The launchers of this server; `is_enabled` follows the settings."""

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled
        self._launchers: dict[str, WarmLauncher] = {}
        self._replaced: list[WarmLauncher] = []

    def find(
        self, environment: EnvironmentRecord, kind: DeviceKind, cache: Path
    ) -> WarmLauncher | None:
        """A launcher that is warm or warming for this environment; None: start in the plain way."""
        modules = _modules_for(environment) if self._is_enabled else None
        if modules is None:
            return None
        launcher = self._launchers.get(environment.name)
        if launcher is None or launcher.environment != environment:
            if launcher is not None:
                self._replaced.append(launcher)
            launcher = self._launchers[environment.name] = WarmLauncher(environment, modules)
        launcher.begin(build_base_env(kind, environment, cache, os.environ))
        return launcher

    async def stop(self) -> None:
        """End all launchers."""
        for launcher in [*self._replaced, *self._launchers.values()]:
            await launcher.stop()


def _modules_for(environment: EnvironmentRecord) -> list[str] | None:
    """What to import: there is a list for each build that warm starts were checked with."""
    name = f"vllm-{environment.vllm_version}-{environment.platform}.txt"
    file = Path(__file__).with_name("preload") / name
    is_module = environment.launch[1:2] == ["-m"]
    return file.read_text().split() if is_module and file.exists() else None
