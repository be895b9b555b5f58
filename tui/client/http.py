"""The management API over HTTP: a unix socket, or an address with a key."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from appliance.protocol.batches import BatchProgress, LineFailure
from appliance.protocol.engines import Engine, LogMatches, LogWindow
from appliance.protocol.events import Event
from appliance.protocol.models import Model
from appliance.protocol.placement import PlanVerdict
from appliance.protocol.system import Snapshot
from tui.client.api import ApiError, Heard, UnreachableError
from tui.client.stream import Message, SseParser, StreamTooLongError
from tui.client.target import START_HINT, Target
from tui.text.sanitize import sanitize_line

_T = TypeVar("_T")
_TIMEOUT = httpx.Timeout(15.0, connect=5.0)
_COPY_TIMEOUT = httpx.Timeout(300.0, connect=5.0)
"""The server answers once a copy of a large file is on its disk."""
_SILENCE_S = 20.0
"""Four missed heartbeats: the link is dead though nobody closed it."""


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes


class _Refusal(msgspec.Struct):
    message: str
    hint: str = ""
    code: str | None = None


class _RefusalBody(msgspec.Struct):
    """What the error bodies of `/v1` and `/admin/v1` share."""

    error: _Refusal


class HttpClient:
    """Typed calls; every failure is an ApiError or UnreachableError."""

    def __init__(self, target: Target, key: str | None = None) -> None:
        self._target = target
        transport = httpx.AsyncHTTPTransport(uds=target.socket) if target.socket else None
        self._http = httpx.AsyncClient(
            base_url=target.base_url,
            transport=transport,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT,
            trust_env=False,
        )

    async def state(self) -> Snapshot:
        """Everything at once."""
        return await self._call("GET", "/admin/v1/state", Snapshot)

    async def plan(self, model: str) -> PlanVerdict:
        """What a load would do."""
        return await self._call("POST", f"{_model(model)}/plan", PlanVerdict)

    async def load(self, model: str) -> Model:
        """Start to load a model."""
        return await self._call("POST", f"{_model(model)}/load", Model)

    async def unload(self, model: str) -> Model:
        """Start to unload a model."""
        return await self._call("POST", f"{_model(model)}/unload", Model)

    async def act_on_batch(self, batch_id: str, action: str) -> BatchProgress:
        """`pause`, `resume` or `cancel` a batch."""
        return await self._call("POST", f"{_batch(batch_id)}/{action}", BatchProgress)

    async def retry_batch(self, batch_id: str) -> BatchProgress:
        """Make a new batch of the lines that have no answer."""
        path = f"{_batch(batch_id)}/retry"
        return await self._call("POST", path, BatchProgress, timeout=_COPY_TIMEOUT)

    async def file_content(self, file_id: str) -> AsyncIterator[bytes]:
        """The content of a file, a piece at a time."""
        path = f"/v1/files/{quote(file_id, safe='')}/content"
        try:
            async with self._http.stream("GET", path) as response:
                if response.status_code != httpx.codes.OK:
                    _raise_for_status(_Answer(response.status_code, await response.aread()))
                async for piece in response.aiter_bytes():
                    yield piece
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def batch_failures(self, batch_id: str) -> list[LineFailure]:
        """The first lines of a batch that failed, and why."""
        return await self._call("GET", f"{_batch(batch_id)}/failures", list[LineFailure])

    async def engines(self) -> list[Engine]:
        """The engines that the server remembers."""
        return await self._call("GET", "/admin/v1/engines", list[Engine])

    async def log_window(self, engine: str, first_line: int, count: int) -> LogWindow:
        """Some lines of an engine's log."""
        query = {"from": str(first_line), "n": str(count)}
        return await self._call("GET", _logs(engine), LogWindow, query)

    async def log_before(self, engine: str, before: int, count: int) -> LogWindow:
        """The last lines before one of an engine's log, of those that are kept."""
        query = {"before": str(before), "tail": str(count)}
        return await self._call("GET", _logs(engine), LogWindow, query)

    async def search_log(self, engine: str, text: str, before: int, count: int) -> LogMatches:
        """The last lines before one that contain `text`, as far as the server got soon."""
        query = {"grep": text, "before": str(before), "tail": str(count)}
        return await self._call("GET", _logs(engine), LogMatches, query)

    async def events(self, since: int | None) -> AsyncIterator[Heard]:
        """The event stream after number `since`."""
        query = {} if since is None else {"since": str(since)}
        headers = {} if since is None else {"Last-Event-ID": str(since)}
        decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
        async for message in self._stream("/admin/v1/events", query, headers):
            if message.data is None:
                yield Heard()
                continue
            seq = int(message.id) if message.id and message.id.isdecimal() else None
            try:
                event = decoder.decode(message.data)
            except msgspec.DecodeError:
                # An event of a newer server that this one does not know; the rest still counts.
                yield Heard(seq=seq)
                continue
            yield Heard(event, seq)

    async def follow_log(self, engine: str, tail: int) -> AsyncIterator[LogWindow | None]:
        """The last lines, then new ones as they come; None is a heartbeat."""
        decoder = msgspec.json.Decoder(LogWindow)
        query = {"tail": str(tail), "follow": "true"}
        async for message in self._stream(_logs(engine), query, {}):
            yield None if message.data is None else _decode(message.data, decoder)

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        kind: type[_T],
        query: Mapping[str, str] | None = None,
        *,
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> _T:
        try:
            response = await self._http.request(method, path, params=query, timeout=timeout)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        answer = _Answer(response.status_code, response.content)
        _raise_for_status(answer)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.DecodeError as error:
            raise ApiError(
                f"the answer to {path} was not understood: {error}",
                "Server and terminal UI may be of different versions.",
                status=answer.status,
            ) from error

    async def _stream(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncIterator[Message]:
        parser = SseParser()
        timeout = httpx.Timeout(_SILENCE_S, connect=5.0)
        accept = {"Accept": "text/event-stream", **headers}
        try:
            async with self._http.stream(
                "GET", path, params=query, headers=accept, timeout=timeout
            ) as response:
                if response.status_code != httpx.codes.OK:
                    _raise_for_status(_Answer(response.status_code, await response.aread()))
                async for chunk in response.aiter_bytes():
                    for message in parser.feed(chunk):
                        yield message
        except (httpx.HTTPError, StreamTooLongError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, httpx.ReadTimeout):
            return UnreachableError(f"{self._target} went silent", START_HINT)
        reason = sanitize_line(str(error)) or type(error).__name__
        return UnreachableError(f"no answer from {self._target}: {reason}", START_HINT)


def _decode(data: str, decoder: msgspec.json.Decoder[_T]) -> _T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise UnreachableError(f"a message was not understood: {error}") from error


def _model(model: str) -> str:
    return f"/admin/v1/models/{quote(model, safe='')}"


def _batch(batch_id: str) -> str:
    return f"/admin/v1/batches/{quote(batch_id, safe='')}"


def _logs(engine: str) -> str:
    return f"/admin/v1/engines/{quote(engine, safe='')}/logs"


def _raise_for_status(answer: _Answer) -> None:
    if answer.status < httpx.codes.BAD_REQUEST:
        return
    try:
        detail = msgspec.json.decode(answer.body, type=_RefusalBody).error
    except msgspec.DecodeError:
        text = sanitize_line(answer.body[:300].decode("utf-8", "replace"))
        raise ApiError(f"HTTP {answer.status}: {text}", status=answer.status) from None
    raise ApiError(
        sanitize_line(detail.message),
        sanitize_line(detail.hint),
        status=answer.status,
        code=detail.code or "",
    )
