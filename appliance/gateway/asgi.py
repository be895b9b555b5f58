"""The few ASGI types and answers that the data plane needs (ASGI specification, HTTP 2.3)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from appliance.errors import ApplianceError, BodyTooLargeError
from appliance.gateway.errors import encode_error, openai_error, retry_after_of, status_of
from appliance.units import format_size

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

TRANSPORT = "appliance.transport"
"""Key of the scope: `unix` for the management socket, `tcp` else. Set by the server alone."""


_MOST_PATIENCE_S = 60.0


class ClientGoneError(Exception):
    """The client closed the connection."""


def header(scope: Scope, name: bytes) -> str | None:
    """First header of that (lower case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


async def read_body(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    """The whole request body. Raises BodyTooLargeError and ClientGoneError."""
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(most_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body = message.get("body", b"")
        size += len(body)
        if size > most_bytes:
            raise _too_large(most_bytes)
        parts.append(body)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def until_gone(receive: Receive) -> None:
    """Until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        continue


class Answer:
    """One answer to one client; knows what has been sent already."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self.request_id = request_id
        self.request_id = request_id
        self.has_started = False

    async def start(self, status: int, headers: Headers) -> None:
        """Status and headers; `x-request-id` is added."""
        self.has_started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"x-request-id", self.request_id)],
            }
        )

    async def body(self, chunk: bytes, *, more: bool = True) -> None:
        """A piece of the body; waits while the client does not read.

        Raises ClientGoneError if it reads nothing for a minute.
        """
        try:
            async with asyncio.timeout(_MOST_PATIENCE_S):
                await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        except TimeoutError:
            # Its lease must not be held for ever.
            raise ClientGoneError from None

    async def json(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """A whole JSON answer."""
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, [(b"content-type", b"application/json"), length, *headers])
        await self.body(body, more=False)

    async def error(self, error: ApplianceError) -> None:
        """A whole error answer in OpenAI's shape."""
        headers = []
        if (seconds := retry_after_of(error)) is not None:
            headers.append((b"retry-after", b"%d" % seconds))
        if error.code == "invalid_api_key":
            headers.append((b"www-authenticate", b"Bearer"))
        await self.json(status_of(error), encode_error(openai_error(error)), headers)


def _too_large(most_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The request body is larger than {format_size(most_bytes)}.",
        hint="Send less, or raise server.max_body.",
    )
