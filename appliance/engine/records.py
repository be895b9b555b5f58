"""Identity records: what a killed server left behind is found again and ended.

A record is written before the spawn and completed after it. The guardian normally ends the engine
by itself when its server dies; the sweep is for the case that the guardian died as well.
"""

import hashlib
import logging
import shutil
import time
from datetime import datetime
from pathlib import Path

import msgspec

from appliance.engine import guardian
from appliance.engine.cgroup import end_cgroup
from appliance.engine.process import VLLM_PREFIX
from appliance.engine.proctree import (
    ENGINE_VARIABLE,
    boot_id,
    kill_all,
    process_info,
    processes_with_variable,
    session_processes,
    wait_gone,
)

logger = logging.getLogger(__name__)

_SWEEP_S = 30.0


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who an engine is; `pid` and `start_ticks` are its guardian's, None before the spawn."""

    id: str
    model: str
    argv_digest: str
    devices: list[str]
    socket: str
    boot_id: str
    created_at: datetime
    pid: int | None = None
    start_ticks: int | None = None
    cgroup: str | None = None
    temporary: str | None = None
    shared_memory: list[str] = []
    """Its files in /dev/shm, as soon as it is ready."""


def argv_digest(argv: list[str]) -> str:
    """Short hash of a command line."""
    return hashlib.sha256("\0".join(argv).encode()).hexdigest()[:16]


def write_record(directory: Path, record: EngineRecord) -> None:
    """Write or replace (atomically)."""
    target = _file(directory, record.id)
    fresh = target.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.replace(target)


def remove_record(directory: Path, engine_id: str) -> None:
    """Forget an engine that is gone, and its socket."""
    _file(directory, engine_id).unlink(missing_ok=True)
    (directory / f"{engine_id}.sock").unlink(missing_ok=True)


def remove_traces(record: EngineRecord) -> None:
    """Its cgroup and its temporary files (blocks); what is not there is no error."""
    if record.cgroup is not None:
        end_cgroup(Path(record.cgroup))
    if record.temporary is not None:
        shutil.rmtree(record.temporary, ignore_errors=True)


def sweep(directory: Path) -> list[str]:
    """End every engine that a record names (blocks); returns the models that were found alive."""
    found = []
    for file in sorted(directory.glob("*.json")):
        try:
            record = msgspec.json.decode(file.read_bytes(), type=EngineRecord)
        except (OSError, msgspec.MsgspecError):
            file.unlink(missing_ok=True)
            continue
        was_alive = _end(record)
        remove_traces(record)
        if record.boot_id == boot_id():
            guardian.remove_shared_memory(set(record.shared_memory))
        if was_alive:
            found.append(record.model)
            logger.warning("engine.swept model=%s engine=%s", record.model, record.id)
        remove_record(directory, record.id)
    for leftover in [*directory.glob("*.sock"), *directory.glob("*.new")]:
        leftover.unlink(missing_ok=True)
    return found


def _end(record: EngineRecord) -> bool:
    if record.boot_id != boot_id():
        return False
    pids = {info.pid for info in processes_with_variable(ENGINE_VARIABLE, record.id)}
    pids |= _session_members(record)
    if not pids:
        return False
    shared = guardian.shared_memory(list(pids))
    deadline = time.monotonic() + _SWEEP_S
    while pids and time.monotonic() < deadline:
        kill_all(list(pids))
        wait_gone(list(pids), 5.0)
        pids = {info.pid for info in processes_with_variable(ENGINE_VARIABLE, record.id)}
        pids |= _session_members(record)
    guardian.remove_shared_memory(shared)
    return True


def _session_members(record: EngineRecord) -> set[int]:
    """Members of the recorded session that are the engine's for certain.

    With the leader alive (same start time) that is all of them. Without it the number may have
    gone to another session since: then only those count that vLLM has named.
    """
    if record.pid is None:
        return set()
    leader = process_info(record.pid)
    if leader is not None and leader.start_ticks != record.start_ticks:
        return set()
    return {
        info.pid
        for info in session_processes(record.pid)
        if leader is not None or info.name.startswith(VLLM_PREFIX)
    }


def _file(directory: Path, engine_id: str) -> Path:
    return directory / f"{engine_id}.json"
