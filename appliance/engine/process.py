"""The process tree of one engine, below its guardian."""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from appliance.engine import guardian
from appliance.engine.cgroup import end_cgroup
from appliance.engine.child import ForkedGuardian, GuardianChild, SpawnedGuardian
from appliance.engine.logs import EngineLog, start_pump
from appliance.engine.oom import OomKills, oom_kills
from appliance.engine.proctree import (
    ENGINE_VARIABLE,
    Activity,
    ProcessInfo,
    kill_all,
    process_info,
    processes_with_variable,
    proportional_bytes,
    session_activity,
    session_processes,
    wait_gone,
)
from appliance.engine.warm_launcher import LauncherError, WarmLauncher

# vLLM names its processes: `VLLM::EngineCore`, `VLLM::Worker_TP0`.
VLLM_PREFIX = "VLLM::"
_PUMP_S = 2.0
_OOM_EVERY_S = 30.0
# Time for the guardian itself after it has killed the tree.
_GUARDIAN_S = 10.0


class EngineProcess:
    """A running tree. `pid` is the guardian's, which is also the number of the session."""

    def __init__(
        self,
        child: GuardianChild,
        engine_id: str,
        pump: threading.Thread,
        grace_s: float,
        cgroup: Path | None,
        oom_before: OomKills,
    ) -> None:
        self._child = child
        self._engine_id = engine_id
        self._pump = pump
        self._grace_s = grace_s
        self._cgroup = cgroup
        self._shared: set[str] = set()
        self._shared_inodes: frozenset[int] = frozenset()
        self._read_by_pid: dict[int, int] = {}
        self._read_bytes = 0
        self._oom_before = self._oom_next = oom_before
        self._oom_at = time.monotonic()
        self._is_closed = False
        self.was_forked = isinstance(child, ForkedGuardian)
        self.was_oom_killed = False
        """Whether the kernel killed one of its processes for want of memory; known at the end."""
        self._watched: dict[int, int] = {}
        info = process_info(child.pid)
        self.pid = child.pid
        self.start_ticks = info.start_ticks if info else 0

    @classmethod
    async def spawn(
        cls,
        argv: list[str],
        env: Mapping[str, str],
        cwd: Path,
        *,
        engine_id: str,
        log: EngineLog,
        on_lines: Callable[[int, list[str]], None],
        on_update: Callable[[str], None] | None = None,
        grace_s: float,
        cgroup: Path | None = None,
        temporary: Path | None = None,
        launcher: WarmLauncher | None = None,
        launch_words: int = 0,
    ) -> "EngineProcess":
        """Start the engine below a guardian in a session of its own. Raises OSError.

        With a launcher it is forked there, where the first `launch_words` of `argv` are done
        already; if that fails it is started in the plain way.
        """
        oom_before = await asyncio.to_thread(oom_kills, cgroup)
        read_end, write_end = os.pipe()
        child: GuardianChild | None = None
        try:
            if launcher is not None:
                with contextlib.suppress(LauncherError):
                    child = await launcher.launch(
                        argv[launch_words:],
                        env,
                        cwd,
                        log=write_end,
                        grace_s=grace_s,
                        cgroup=cgroup,
                        temporary=temporary,
                    )
            if child is None:
                own = ["-" if path is None else str(path) for path in (cgroup, temporary)]
                child = await _spawn_guardian([str(grace_s), *own, *argv], env, cwd, write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        loop = asyncio.get_running_loop()
        pump = start_pump(read_end, log, loop, on_lines, on_update=on_update)
        return cls(child, engine_id, pump, grace_s, cgroup, oom_before)

    def terminate(self) -> None:
        """Ask the engine to end; the guardian kills it after the grace period."""
        self._child.send(b"t")

    def kill(self) -> None:
        """Kill the whole tree now."""
        self._child.send(b"k")

    async def wait(self) -> int:
        """Until no process of the tree is left; the exit status of the engine's first process."""
        status = await self._child.wait()
        self._unwatch()
        if status < 0:
            # The guardian itself was killed: its session and its mark tell what it left.
            await asyncio.to_thread(self._end_rest)
        await asyncio.to_thread(self._close_accounts)
        # The last lines say why it ended.
        await asyncio.to_thread(self._pump.join, _PUMP_S)
        return status

    def _close_accounts(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        now = oom_kills(self._cgroup)
        self.was_oom_killed = now.has_grown_since(self._oom_before)
        if self._cgroup is not None:
            end_cgroup(self._cgroup)
        # Of processes that were killed before the guardian could look.
        guardian.remove_shared_memory(self._shared)

    def _end_rest(self) -> None:
        self.note_shared_memory()
        end_session(self.pid)
        marked = [info.pid for info in processes_with_variable(ENGINE_VARIABLE, self._engine_id)]
        kill_all(marked)
        wait_gone(marked, 5.0)

    async def wait_ended(self) -> int:
        """As `wait`, for a tree that was told to end: a guardian that hangs is killed as well."""
        try:
            async with asyncio.timeout(self._grace_s + _GUARDIAN_S):
                return await self.wait()
        except TimeoutError:
            self._child.kill()
            return await self.wait()

    async def watch_workers(self, on_death: Callable[[str], None]) -> None:
        """Call `on_death(name)` as soon as a process that vLLM named ends.

        vLLM notices the death of its own engine core only after some seconds.
        """
        loop = asyncio.get_running_loop()
        for info in named_workers(await asyncio.to_thread(session_processes, self.pid)):
            if info.pid in self._watched:
                continue
            try:
                descriptor = os.pidfd_open(info.pid)
            except OSError:
                continue
            self._watched[info.pid] = descriptor
            loop.add_reader(descriptor, self._on_worker_death, info.pid, info.name, on_death)

    def memory_bytes(self) -> int:
        """Memory of the tree (blocks for some milliseconds: call it in a thread)."""
        return sum(proportional_bytes(info.pid) for info in session_processes(self.pid))

    def activity(self) -> Activity:
        """What the tree has done so far, also by processes that have ended (blocks for some ms)."""
        activity, read = session_activity(self.pid)
        self._read_bytes += sum(
            max(count - self._read_by_pid.get(pid, 0), 0) for pid, count in read.items()
        )
        self._read_by_pid = read
        return replace(activity, read_bytes=self._read_bytes)

    def note_shared_memory(self) -> set[str]:
        """Its files in /dev/shm (blocks); removed at the end, also if the guardian cannot do it."""
        inodes = frozenset(guardian.shared_memory_files())
        if inodes != self._shared_inodes:
            self._shared_inodes = inodes
            self._shared |= guardian.shared_memory(list(self.pids()))
        return self._shared

    def note_oom_kills(self) -> None:
        """Kills that are older than a while have nothing to do with a later end (blocks)."""
        now = time.monotonic()
        if now - self._oom_at > _OOM_EVERY_S:
            self._oom_at = now
            self._oom_before, self._oom_next = self._oom_next, oom_kills(self._cgroup)

    def pids(self) -> set[int]:
        """Processes of the tree."""
        return {info.pid for info in session_processes(self.pid)}

    def _on_worker_death(self, pid: int, name: str, on_death: Callable[[str], None]) -> None:
        self._forget(pid)
        on_death(name)

    def _forget(self, pid: int) -> None:
        descriptor = self._watched.pop(pid, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _unwatch(self) -> None:
        for pid in list(self._watched):
            self._forget(pid)


async def _spawn_guardian(
    arguments: list[str], env: Mapping[str, str], cwd: Path, log: int
) -> SpawnedGuardian:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(Path(guardian.__file__)),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    return SpawnedGuardian(process)


def end_session(session: int) -> None:
    """Kill what is left of a session whose leader has ended (blocks)."""
    left = [info.pid for info in session_processes(session)]
    if left:
        kill_all(left)
        wait_gone(left, 5.0)


def named_workers(processes: Sequence[ProcessInfo]) -> list[ProcessInfo]:
    """Those that vLLM gave a name.

    A program that one of them starts has its name, too, until it is executed, and may end at once:
    it is known by its parent's name.
    """
    names = {info.pid: info.name for info in processes}
    return [
        info
        for info in processes
        if info.name.startswith(VLLM_PREFIX) and names.get(info.ppid) != info.name
    ]
