"""The OpenAI-compatible endpoint: who asks, for which model, over which lease."""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgspec

from appliance.auth import Keys, bearer
from appliance.auth import Scope as KeyScope
from appliance.errors import (
    ApplianceError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    WrongMethodError,
)
from appliance.gateway.asgi import (
    TRANSPORT,
    Answer,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    until_gone,
)
from appliance.gateway.browsers import require_local
from appliance.gateway.errors import error_event, openai_error, unexpected
from appliance.gateway.keep_alive import HEADER, read_keep_alive, without_keep_alive
from appliance.gateway.listing import list_models, one_model, waiting_comment
from appliance.gateway.proxy import STREAM_HEADERS, forward
from appliance.protocol.models import Task
from appliance.registry.registry import Registry
from appliance.slots.leases import Lease
from appliance.slots.scheduler import SlotScheduler

_T = TypeVar("_T")

_FORWARDED = {
    "/v1/chat/completions": Task.GENERATE,
    "/v1/completions": Task.GENERATE,
    "/v1/embeddings": Task.EMBED,
}
_LISTING = "/v1/models"
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
# Larger bodies are decoded in a thread: 2 MB take some milliseconds.
_DECODE_INLINE_BYTES = 1024 * 1024


Endpoints = Callable[[Scope, Receive, Answer], Coroutine[Any, Any, None]]
"""Answers what the engines do not serve; raises ApplianceError."""


class _RoutingFields(msgspec.Struct):
    """The fields that are for us; all else is the engine's business."""

    model: Any = None
    stream: Any = False
    keep_alive: Any = msgspec.UNSET
    ttl: Any = msgspec.UNSET


class Gateway:
    """A raw ASGI application for all paths below `/v1`."""

    def __init__(
        self,
        slots: SlotScheduler,
        registry: Registry,
        keys: Keys,
        *,
        must_have_key: Callable[[], bool],
        allowed_hosts: list[str],
        max_body_bytes: int,
        heartbeat_s: float,
        others: Mapping[str, Endpoints] | None = None,
    ) -> None:
        self._slots = slots
        self._registry = registry
        self._keys = keys
        self._must_have_key = must_have_key
        self._allowed_hosts = frozenset(name.lower() for name in allowed_hosts)
        self._max_body_bytes = max_body_bytes
        self._heartbeat_s = heartbeat_s
        self._others = others or {}
        self._decoder = msgspec.json.Decoder(_RoutingFields)
        self._cut = asyncio.Event()
        self._working = 0
        self._idle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes an error object."""
        answer = Answer(send, _request_id(scope))
        self._working += 1
        self._idle.clear()
        try:
            await self._answer(scope, receive, answer)
        except ClientGoneError:
            return
        except ApplianceError as error:
            await _fail(answer, error)
        except Exception as error:  # noqa: BLE001 - the edge: a client never sees a traceback
            await _fail(answer, unexpected(error))
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    async def cut_off(self, timeout_s: float) -> None:
        """The server stops: end what still runs with an error, and wait until that is sent."""
        self._cut.set()
        if self._working:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()

    async def _answer(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        self._check_key(scope)
        method, path = scope["method"], scope["path"]
        if path in _FORWARDED:
            if method != "POST":
                raise _wrong_method(method, path, "POST")
            body = await read_body(scope, receive, self._max_body_bytes)
            work = self._forward(scope, body, answer, time.monotonic())
            await _unless_gone(work, receive, self._cut)
        elif path == _LISTING or path.startswith(f"{_LISTING}/"):
            if method not in {"GET", "HEAD"}:
                raise _wrong_method(method, path, "GET")
            board = self._slots.board
            is_list = path == _LISTING
            body = list_models(board) if is_list else one_model(board, path[len(_LISTING) + 1 :])
            await answer.json(200, body)
        elif (other := self._others.get(path.removeprefix("/v1/").split("/")[0])) is not None:
            await other(scope, receive, answer)
        else:
            raise NotFoundError(
                f"Unknown request URL: {method} {path}.",
                hint="This server has /v1/models, /v1/chat/completions, /v1/completions,"
                " /v1/embeddings, /v1/files and /v1/batches.",
            )

    async def _forward(self, scope: Scope, body: bytes, answer: Answer, received: float) -> None:
        path: str = scope["path"]
        fields = await self._in_thread_if_large(self._decoder.decode, body)
        if not isinstance(fields.model, str) or not fields.model:
            raise InvalidRequestError(
                "You must provide a model parameter, a string.",
                hint="GET /v1/models lists the models of this server.",
                param="model",
            )
        self._check_task(fields.model, path)
        keep_alive_s = read_keep_alive(fields.keep_alive, fields.ttl, header(scope, HEADER))
        if fields.keep_alive is not msgspec.UNSET or fields.ttl is not msgspec.UNSET:
            body = await self._in_thread_if_large(without_keep_alive, body)
        async with AsyncExitStack() as stack:
            entering = stack.enter_async_context(
                self._slots.lease(fields.model, keep_alive_s=keep_alive_s)
            )
            if fields.stream is True and _FORWARDED[path] is Task.GENERATE:
                lease = await self._with_heartbeats(entering, fields.model, answer)
            else:
                lease = await entering
            await forward(
                lease,
                path,
                body,
                request_id=answer.request_id,
                answer=answer,
                received=received,
            )

    @staticmethod
    async def _in_thread_if_large(decode: Callable[[bytes], _T], body: bytes) -> _T:
        try:
            if len(body) > _DECODE_INLINE_BYTES:
                return await asyncio.to_thread(decode, body)
            return decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                f"We could not parse the JSON body of your request: {error}.",
                hint="The body must be a JSON object.",
            ) from error

    async def _with_heartbeats(
        self, entering: Coroutine[Any, Any, Lease], model: str, answer: Answer
    ) -> Lease:
        """While the lease is waited for, comments keep the client's stream alive."""
        task = asyncio.ensure_future(entering)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self._heartbeat_s)
                if done:
                    return task.result()
                if not answer.has_started:
                    await answer.start(200, STREAM_HEADERS)
                await answer.body(waiting_comment(self._slots.board.model(model)))
        except BaseException:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise

    def _check_task(self, model: str, path: str) -> None:
        """Refused before anything is loaded. Raises ModelNotFoundError too."""
        task = self._registry.get(model).settings.task
        if task is not _FORWARDED[path]:
            raise InvalidRequestError(
                f"The model {model!r} is for {task.value}; it does not serve {path}.",
                hint="GET /v1/models tells what each model can do.",
                param="model",
            )

    def _check_key(self, scope: Scope) -> None:
        """Raises UnauthorizedError and ForbiddenError."""
        if scope.get(TRANSPORT) == "unix":
            return
        if self._must_have_key():
            self._keys.verify(bearer(header(scope, b"authorization")), KeyScope.INFER)
        else:
            require_local(header(scope, b"host"), header(scope, b"origin"), self._allowed_hosts)


async def _unless_gone(
    work: Coroutine[Any, Any, None], receive: Receive, cut: asyncio.Event
) -> None:
    """Run `work`; cancel it when the client leaves, or the server stops (UnavailableError)."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(until_gone(receive))
    cutting = asyncio.ensure_future(cut.wait())
    tasks = (working, watching, cutting)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        elif cutting.done():
            raise UnavailableError(
                "The server was stopped before the answer was complete.",
                hint="Send the request again when it is back.",
            )
        else:
            raise ClientGoneError
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fail(answer: Answer, error: ApplianceError) -> None:
    if answer.has_started:
        # The last piece may have ended amid an event.
        await answer.body(b"\n\n" + error_event(openai_error(error)), more=False)
    else:
        await answer.error(error)


def _request_id(scope: Scope) -> bytes:
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.match(given):
        return given.encode()
    return f"req_{secrets.token_hex(12)}".encode()


def _wrong_method(method: str, path: str, allowed: str) -> WrongMethodError:
    return WrongMethodError(f"Not allowed to {method} on {path}.", hint=f"Use {allowed}.")
