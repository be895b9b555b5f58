"""Runs one engine outside the server: start it, ask it once, end it, see that nothing is left."""

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.engine.command import EngineSpec, build_argv, build_env
from appliance.engine.connection import ConnectionLostError, EngineConnections
from appliance.engine.environments import EnvironmentRecord
from appliance.engine.failure import classify
from appliance.engine.health import is_ready
from appliance.engine.logs import EngineLog
from appliance.engine.process import EngineProcess
from appliance.engine.proctree import (
    ENGINE_VARIABLE,
    kill_all,
    process_info,
    processes_with_variable,
    session_processes,
    wait_gone,
)
from appliance.engine.warm_launcher import WarmLauncher

_READY_S = 600.0
_ANSWER_S = 120.0
_GRACE_S = 20.0
_GONE_S = 5.0
_PROBE_EVERY_S = 0.05
_KEPT_LINES = 400
_TOKENS = 32
_PROMPT = "def total(values: list[float]) -> float:"


class TrialError(Exception):
    """Why the engine could not be tried; a sentence for a person."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a completion says about its tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    logprobs: Answer


class _Completion(msgspec.Struct, frozen=True, kw_only=True):
    choices: list[_Choice]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """An engine that answered and ended without a trace."""

    ready_s: float
    answer: Answer
    parent: int
    """The process that its guardian was a child of: the launcher, or this one."""


async def run_trial(
    spec: EngineSpec,
    environment: EnvironmentRecord,
    log_file: Path,
    launcher: WarmLauncher | None = None,
) -> TrialResult:
    """Start the engine, with a launcher that is warm or in the plain way, and ask it.

    Raises TrialError.
    """
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    connections = EngineConnections(spec.socket)
    started = time.monotonic()
    try:
        process = await EngineProcess.spawn(
            build_argv(spec, environment),
            build_env(spec, environment, os.environ),
            spec.cache,
            engine_id=spec.engine_id,
            log=EngineLog(log_file, spec.engine_id, spec.model),
            on_lines=lambda _, more: lines.extend(more),
            grace_s=_GRACE_S,
            launcher=launcher,
            launch_words=len(environment.launch),
        )
    except OSError as error:
        raise TrialError(f"it could not be started: {error}") from error
    try:
        info = process_info(process.pid)
        await _become_ready(process, connections, spec, lines)
        ready_s = time.monotonic() - started
        answer = await _ask(connections, spec.model)
    finally:
        connections.close()
        await asyncio.shield(_end(process, spec))
    return TrialResult(ready_s=ready_s, answer=answer, parent=info.ppid if info else 0)


async def _become_ready(
    process: EngineProcess, connections: EngineConnections, spec: EngineSpec, lines: deque[str]
) -> None:
    ended = asyncio.create_task(process.wait())
    try:
        async with asyncio.timeout(_READY_S):
            while not ended.done():
                if spec.socket.exists() and await is_ready(connections, spec.model):
                    return
                await asyncio.wait({ended}, timeout=_PROBE_EVERY_S)
    except TimeoutError as error:
        raise TrialError(f"it was not ready after {_READY_S:.0f} s") from error
    finally:
        ended.cancel()
    failure = classify(
        list(lines),
        first_line=1,
        exit_status=ended.result(),
        at=datetime.now(UTC),
        attempts=1,
    )
    raise TrialError(failure.message)


async def _ask(connections: EngineConnections, model: str) -> Answer:
    body = {
        "model": model,
        "prompt": _PROMPT,
        "temperature": 0,
        "max_tokens": _TOKENS,
        "ignore_eos": True,
        "logprobs": 5,
    }
    try:
        async with asyncio.timeout(_ANSWER_S):
            response = await connections.request(
                "POST",
                "/v1/completions",
                headers=[(b"content-type", b"application/json")],
                body=msgspec.json.encode(body),
            )
            text = await response.read()
        if response.status != 200:
            raise TrialError(f"it answered with status {response.status}")
        answer = msgspec.json.decode(text, type=_Completion).choices[0].logprobs
    except (OSError, TimeoutError, ConnectionLostError, IndexError) as error:
        raise TrialError(f"it did not answer: {error!r}") from error
    except msgspec.MsgspecError as error:
        raise TrialError(f"its answer cannot be read: {error}") from error
    if len(answer.tokens) != _TOKENS:
        raise TrialError(f"it answered with {len(answer.tokens)} tokens instead of {_TOKENS}")
    return answer


async def _end(process: EngineProcess, spec: EngineSpec) -> None:
    process.terminate()
    await process.wait_ended()
    left = await asyncio.to_thread(_left_of, process.pid, spec.engine_id)
    if left:
        raise TrialError(f"{len(left)} of its processes did not end")


def _left_of(session: int, engine_id: str) -> list[int]:
    """Processes that outlived the engine; they are killed."""
    infos = [*session_processes(session), *processes_with_variable(ENGINE_VARIABLE, engine_id)]
    left = wait_gone([info.pid for info in infos], _GONE_S)
    kill_all(left)
    return left
