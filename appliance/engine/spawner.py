"""Starts engines on this machine: record, cgroup, launcher or plain, guardian."""

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.engine.cgroup import EngineCgroups
from appliance.engine.command import EngineSpec, build_argv, build_env
from appliance.engine.environments import EnvironmentRecord
from appliance.engine.logs import EngineLog
from appliance.engine.process import EngineProcess
from appliance.engine.proctree import boot_id
from appliance.engine.records import (
    EngineRecord,
    argv_digest,
    remove_record,
    remove_traces,
    write_record,
)
from appliance.engine.warm_launcher import WarmLauncher
from appliance.engine.warm_launchers import WarmLaunchers

logger = logging.getLogger(__name__)


class EngineSpawner:
    """All that engines are started with; `records` is the directory of identity records."""

    def __init__(self, records: Path, launchers: WarmLaunchers, cgroups: EngineCgroups) -> None:
        self._records = records
        self._launchers = launchers
        self._cgroups = cgroups
        self._written: dict[str, EngineRecord] = {}

    async def launcher(
        self, spec: EngineSpec, environment: EnvironmentRecord, ending: asyncio.Event
    ) -> WarmLauncher | None:
        """The launcher for this engine, when it is warm; None: start in the plain way.

        It may import for many seconds; `ending` ends the wait. Variables of a model's own may have
        been read when vLLM was imported, so such a model starts in the plain way.
        """
        if spec.settings.env:
            return None
        launcher = await self._launchers.find(environment, spec.device_kind, spec.cache)
        if launcher is None:
            return None
        waits = [asyncio.create_task(launcher.wait_warm()), asyncio.create_task(ending.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return launcher if launcher.is_warm else None

    async def spawn(
        self,
        spec: EngineSpec,
        environment: EnvironmentRecord,
        devices: list[str],
        *,
        launcher: WarmLauncher | None,
        log: EngineLog,
        on_lines: Callable[[int, list[str]], None],
        on_update: Callable[[str], None],
        grace_s: float,
    ) -> EngineProcess:
        """Start an engine; its record is written before and completed after.

        With a launcher it is forked there, if that works. Raises OSError: nothing was started.
        """
        argv = build_argv(spec, environment)
        cgroup = await asyncio.to_thread(self._cgroups.create, spec.engine_id)
        record = EngineRecord(
            id=spec.engine_id,
            model=spec.model,
            argv_digest=argv_digest(argv),
            devices=devices,
            socket=str(spec.socket),
            boot_id=boot_id(),
            created_at=datetime.now(UTC),
            cgroup=None if cgroup is None else str(cgroup),
            temporary=None if spec.temporary is None else str(spec.temporary),
        )
        await self._write(record)
        if spec.temporary is not None:
            await asyncio.to_thread(spec.temporary.mkdir, mode=0o700)
        process = await EngineProcess.spawn(
            argv,
            build_env(spec, environment, os.environ),
            spec.cache,
            engine_id=spec.engine_id,
            log=log,
            on_lines=on_lines,
            on_update=on_update,
            grace_s=grace_s,
            cgroup=cgroup,
            temporary=spec.temporary,
            launcher=launcher,
            launch_words=len(environment.launch),
        )
        await self._complete(
            msgspec.structs.replace(record, pid=process.pid, start_ticks=process.start_ticks)
        )
        return process

    async def note_shared_memory(self, engine_id: str, process: EngineProcess) -> None:
        """Remember files in /dev/shm that a later start would have to remove."""
        names = sorted(await asyncio.to_thread(process.note_shared_memory))
        record = self._written[engine_id]
        if names != record.shared_memory:
            await self._complete(msgspec.structs.replace(record, shared_memory=names))

    async def forget(self, engine_id: str) -> None:
        """No process of the engine is left: nor is anything else."""
        record = self._written.pop(engine_id, None)
        try:
            if record is not None:
                await asyncio.to_thread(remove_traces, record)
            await asyncio.to_thread(remove_record, self._records, engine_id)
        except OSError as error:
            # The next start sweeps it.
            logger.warning("engine.record_left engine=%s error=%s", engine_id, error)

    async def _complete(self, record: EngineRecord) -> None:
        """Add to a record; the engine runs, so a full disk must not end it."""
        try:
            await self._write(record)
        except OSError as error:
            logger.warning("engine.record_incomplete engine=%s error=%s", record.id, error)

    async def _write(self, record: EngineRecord) -> None:
        self._written[record.id] = record
        await asyncio.to_thread(write_record, self._records, record)
