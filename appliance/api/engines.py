"""Engines, their logs, and the environments that they run in."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import Controller, Response, get
from litestar.params import QueryParameter
from litestar.response import Stream

from appliance.api.guards import admin_guard
from appliance.engine.environments import EnvironmentStore
from appliance.engine.logs import EngineLog
from appliance.engine.supervisor import EngineSupervisor
from appliance.errors import InvalidRequestError, NotFoundError
from appliance.protocol.engines import Engine, LogWindow
from appliance.protocol.system import EngineEnvironment
from appliance.slots.board import SlotBoard

_HEARTBEAT_S = 5.0
_MOST_LINES = 10_000
_ACTION = "/logs"

Lines = Annotated[int, QueryParameter(ge=0, le=_MOST_LINES)]


class EngineController(Controller):
    """`/admin/v1/engines`. An engine is named by its id, or by its model for the newest one."""

    path = "/admin/v1/engines"
    guards = [admin_guard]
    tags = ["engines"]

    @get("/", operation_id="listEngines")
    async def all(self, board: SlotBoard) -> list[Engine]:
        """Running engines, and for each model the one that ended last."""
        return board.engines()

    @get("/{path:path}", operation_id="getEngine")
    async def one(
        self,
        path: str,
        board: SlotBoard,
        tail: Annotated[int | None, QueryParameter(ge=0, le=_MOST_LINES)] = None,
        first: Annotated[int | None, QueryParameter(name="from", ge=1)] = None,
        n: Lines = 200,
        follow: bool = False,
    ) -> Response[Engine] | Response[LogWindow] | Stream:
        """`/{engine}`, or `/{engine}/logs` with `tail=` or `from=` and `n=`, and `follow=true`."""
        ref = path.strip("/")
        if not ref.endswith(_ACTION):
            return Response(_find(board, ref).view())
        log = _find(board, ref.removesuffix(_ACTION)).log
        if first is not None and tail is not None:
            raise InvalidRequestError("`from` and `tail` exclude each other.", param="tail")
        count = n if tail is None else tail
        window = await asyncio.to_thread(
            lambda: log.last(count) if first is None else log.window(first, count)
        )
        if not follow:
            return Response(window)
        return Stream(
            _follow(log, window),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )


@get("/admin/v1/engine-envs", guards=[admin_guard], tags=["engines"], operation_id="listEngineEnvs")
async def engine_environments(environments: EnvironmentStore) -> list[EngineEnvironment]:
    """The installed vLLM builds."""

    def views() -> list[EngineEnvironment]:
        return [environments.view(record) for record in environments.records()]

    return await asyncio.to_thread(views)


def _find(board: SlotBoard, ref: str) -> EngineSupervisor:
    supervisor = board.engine(ref)
    if supervisor is None:
        raise NotFoundError(
            f"There is no engine {ref!r}, and no model of that name was started yet.",
            hint="`appliance ps` lists the engines, `appliance ls` the models.",
        )
    return supervisor


async def _follow(log: EngineLog, window: LogWindow) -> AsyncIterator[bytes]:
    # Subscribed before the file is read, so nothing falls between the two.
    tail = log.tail()
    try:
        yield _message(window)
        next_line = window.first_line + len(window.lines)
        while (more := await asyncio.to_thread(log.window, next_line, _MOST_LINES)).lines:
            yield _message(more)
            next_line = more.first_line + len(more.lines)
        tail.begin_at(next_line)
        while True:
            batch = await tail.batch(_HEARTBEAT_S)
            if batch is None:
                yield b": heartbeat\n\n"
                continue
            first, lines, skipped = batch
            yield _message(
                LogWindow(
                    engine_id=window.engine_id,
                    model=window.model,
                    first_line=first,
                    total_lines=log.line_count,
                    lines=lines,
                    skipped=skipped,
                )
            )
    except StopAsyncIteration:
        return
    finally:
        log.untail(tail)


def _message(window: LogWindow) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(window)
