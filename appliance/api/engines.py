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
from appliance.engine.log_search import LogFilter
from appliance.engine.logs import EngineLog
from appliance.engine.supervisor import EngineSupervisor
from appliance.errors import InvalidRequestError, NotFoundError
from appliance.protocol.engines import Engine, LogLevel, LogMatches, LogWindow
from appliance.protocol.system import EngineEnvironment
from appliance.slots.board import SlotBoard
from appliance.units import MIB

_HEARTBEAT_S = 5.0
_HEARTBEAT = b": heartbeat\n\n"
_MOST_LINES = 10_000
# What a follower gets at once.
_PAGE_BYTES = MIB
_ACTION = "/logs"

Lines = Annotated[int, QueryParameter(ge=0, le=_MOST_LINES)]
Line = Annotated[int | None, QueryParameter(ge=1)]


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
        before: Line = None,
        n: Lines = 200,
        grep: Annotated[str, QueryParameter(max_length=1000)] = "",
        level: LogLevel | None = None,
        follow: bool = False,
    ) -> Response[Engine] | Response[LogWindow] | Response[LogMatches] | Stream:
        """`/{engine}`, or `/{engine}/logs` with `tail=` or `from=` and `n=`, and `follow=true`.

        `before=` takes the lines before that one instead of the newest. With `grep=` or `level=`
        the answer holds matching lines only; it comes soon and says how far it looked.
        """
        ref = path.strip("/")
        if not ref.endswith(_ACTION):
            return Response(_find(board, ref).view())
        log = _find(board, ref.removesuffix(_ACTION)).log
        if first is not None and (tail is not None or before is not None):
            raise InvalidRequestError("`from` excludes `tail` and `before`.", param="from")
        if "\n" in grep or "\r" in grep:
            raise InvalidRequestError("`grep` is text within one line.", param="grep")
        count = n if tail is None else tail
        if grep or level is not None:
            keep = LogFilter(grep, level)
            matches = await asyncio.to_thread(
                lambda: (
                    log.search_back(keep, count, before)
                    if first is None
                    else log.search(keep, first, count)
                )
            )
            return _stream(_follow_matches(log, keep, matches)) if follow else Response(matches)
        window = await asyncio.to_thread(
            lambda: log.last(count, before) if first is None else log.window(first, count)
        )
        return _stream(_follow(log, window)) if follow else Response(window)


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


def _stream(messages: AsyncIterator[bytes]) -> Stream:
    return Stream(
        messages,
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _follow(log: EngineLog, window: LogWindow) -> AsyncIterator[bytes]:
    # Subscribed before the file is read, so nothing falls between the two.
    tail = log.tail()
    try:
        yield _message(window)
        next_line = window.first_line + len(window.lines)
        while (
            more := await asyncio.to_thread(log.window, next_line, _MOST_LINES, _PAGE_BYTES)
        ).lines:
            yield _message(more)
            next_line = more.first_line + len(more.lines)
        tail.begin_at(next_line)
        while True:
            batch = await tail.batch(_HEARTBEAT_S)
            if batch is None:
                yield _HEARTBEAT
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


async def _follow_matches(
    log: EngineLog, keep: LogFilter, matches: LogMatches
) -> AsyncIterator[bytes]:
    """First the matches that were asked for, then all that follow on them."""
    tail = log.tail_matches(keep)
    try:
        yield _message(matches)
        is_at_end = False
        while not is_at_end:
            matches = await asyncio.to_thread(log.search, keep, matches.scanned_to, _MOST_LINES)
            is_at_end = matches.is_complete
            # Nothing found is worth a message too: it says how far it looked.
            yield _message(matches)
        tail.begin_at(matches.scanned_to)
        while True:
            batch = await tail.batch(_HEARTBEAT_S)
            yield _HEARTBEAT if batch is None else _message(log.matches(batch))
    except StopAsyncIteration:
        return
    finally:
        log.untail(tail)


def _message(window: LogWindow | LogMatches) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(window)
