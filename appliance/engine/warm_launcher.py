"""The server's side of one warm launcher: started, looked after, asked for engines."""

import asyncio
import contextlib
import json
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.engine import warm
from appliance.engine.child import ForkedGuardian
from appliance.engine.environments import EnvironmentRecord
from appliance.engine.proctree import ENGINE_VARIABLE, proportional_bytes
from appliance.protocol.launchers import Launcher, LauncherState

logger = logging.getLogger(__name__)

_READY_S = 120.0
_FORK_S = 10.0
_FIRST_PAUSE_S = 1.0
_MOST_TRIES = 5
# A launcher that lived this long was sound: its end is no failure of the build.
_SOUND_AFTER_S = 60.0
_MESSAGE_BYTES = 1 << 20


class LauncherError(Exception):
    """This engine has to be started in the plain way."""


class WarmLauncher:
    """A process that has imported one vLLM build; `launch` forks an engine from it.

    It is looked after from `begin` to `stop`: one that dies is started again, with growing pauses,
    until it has failed too often in a row.
    """

    def __init__(
        self,
        environment: EnvironmentRecord,
        modules: list[str],
        *,
        stamp: str = "",
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.environment = environment
        self.stamp = stamp
        """Of the packages that it has imported."""
        self._modules = modules
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._care: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._state = LauncherState.WARMING
        self._problem = ""
        self._import_s = 0.0
        self._warm_at: float | None = None
        self._memory_bytes = 0

    @property
    def is_warm(self) -> bool:
        """Whether an engine can be forked now."""
        return self._socket is not None

    def view(self) -> Launcher:
        """The launcher as others see it."""
        return Launcher(
            environment=self.environment.name,
            state=self._state,
            pid=self._process.pid if self._process else None,
            import_s=self._import_s,
            memory_bytes=self._memory_bytes,
            problem=self._problem,
        )

    def measure(self) -> None:
        """Its memory, with pages that its engines share divided among all (blocks for a while)."""
        process = self._process
        self._memory_bytes = proportional_bytes(process.pid) if process and self.is_warm else 0

    async def wait_warm(self) -> None:
        """Wait for one that is warming up: that takes less time than a plain start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                await self._settled.wait()

    def begin(self, env: Mapping[str, str]) -> None:
        """Start to warm up, unless that was done before."""
        if self._care is None:
            self._care = asyncio.create_task(self._look_after(dict(env)), name="launcher")

    async def launch(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: Path,
        *,
        log: int,
        grace_s: float,
        cgroup: Path | None = None,
        temporary: Path | None = None,
    ) -> ForkedGuardian:
        """Fork an engine; `log` is the descriptor that it writes to. Raises LauncherError.

        Then nothing of that engine is left, and it may be started in the plain way.
        """
        request = {
            "name": env.get(ENGINE_VARIABLE, ""),
            "argv": argv,
            "env": dict(env),
            "cwd": str(cwd),
            "grace_s": grace_s,
            "cgroup": "-" if cgroup is None else str(cgroup),
            "temporary": "-" if temporary is None else str(temporary),
        }
        control_read, control_write = os.pipe()
        status_read, status_write = os.pipe()
        try:
            async with self._lock, asyncio.timeout(_FORK_S):
                descriptors = [log, control_read, status_write]
                pid = await asyncio.to_thread(self._ask, json.dumps(request).encode(), descriptors)
        except (OSError, ValueError, KeyError, TimeoutError) as error:
            os.close(control_write)
            os.close(control_read)
            os.close(status_write)
            # One that does not answer is of no use: its end starts a fresh one.
            self._kill()
            # It may have forked the engine all the same, which now ends without its control pipe.
            await asyncio.to_thread(_wait_closed, status_read, grace_s + _FORK_S)
            raise LauncherError from error
        except BaseException:
            for descriptor in (control_write, control_read, status_write, status_read):
                os.close(descriptor)
            raise
        os.close(control_read)
        os.close(status_write)
        return ForkedGuardian(pid, control_write, status_read)

    async def stop(self) -> None:
        """End the launcher; engines go on."""
        if self._care is not None:
            self._care.cancel()
            await asyncio.gather(self._care, return_exceptions=True)

    def _ask(self, request: bytes, descriptors: list[int]) -> int:
        connection = self._socket
        if connection is None:
            raise OSError("it is not there")
        socket.send_fds(connection, [request], descriptors)
        return int(json.loads(connection.recv(_MESSAGE_BYTES))["pid"])

    async def _look_after(self, env: dict[str, str]) -> None:
        tries = 0
        try:
            while tries < _MOST_TRIES:
                self._warm_at = None
                self._problem = await self._live_once(env)
                warm_s = 0.0 if self._warm_at is None else time.monotonic() - self._warm_at
                is_sound = warm_s > _SOUND_AFTER_S
                tries = 1 if is_sound else tries + 1
                logger.warning(
                    "launcher.ended environment=%s reason=%s", self.environment.name, self._problem
                )
                self._to(LauncherState.FAILED)
                await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (tries - 1))
        finally:
            self._settled.set()
            await self._end()

    async def _live_once(self, env: dict[str, str]) -> str:
        """Start it, and wait for its end; returns why it ended."""
        self._to(LauncherState.WARMING)
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
            if report["unsafe"]:
                return "; ".join(report["unsafe"])
            ours.settimeout(_FORK_S)
            self._socket = ours
            self._import_s = report["import_s"]
            self._problem = ""
            self._warm_at = time.monotonic()
            await asyncio.to_thread(self.measure)
            self._to(LauncherState.WARM)
            logger.info(
                "launcher.warm environment=%s import_s=%s", self.environment.name, self._import_s
            )
            status = await self._process.wait()
        except (OSError, ValueError) as error:
            return f"It did not start: {error}."
        else:
            return f"It ended with status {status}."
        finally:
            theirs.close()
            ours.close()
            await self._end()

    def _to(self, state: LauncherState) -> None:
        self._state = state
        if state is LauncherState.WARMING:
            self._settled.clear()
        else:
            self._settled.set()
        self._on_change()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        self._socket = None
        self._memory_bytes = 0
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())


def _wait_closed(descriptor: int, timeout_s: float) -> None:
    """Until all other ends of the pipe are closed (blocks); closes this one."""
    end = time.monotonic() + timeout_s
    try:
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([descriptor], [], [], left)
            if ready and not os.read(descriptor, 64):
                return
    finally:
        os.close(descriptor)
