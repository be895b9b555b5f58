"""One request through one engine: bytes in, bytes out, and an honest end when the engine dies."""

import asyncio
import time

from appliance.engine.connection import ConnectionLostError, EngineResponse
from appliance.errors import EngineDiedError
from appliance.gateway.asgi import Answer
from appliance.gateway.errors import (
    ErrorEvents,
    encode_error,
    error_event,
    normalize_engine_error,
    openai_error,
)
from appliance.slots.leases import Lease

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks nginx and its kind not to hold back what comes.
    (b"x-accel-buffering", b"no"),
]
_PASSED_BACK = {b"content-type", b"content-length"}
# The cause of a death is known when the engine's processes are gone.
_CAUSE_S = 2.0


async def forward(
    lease: Lease,
    path: str,
    body: bytes,
    *,
    request_id: bytes,
    answer: Answer,
    received: float,
) -> None:
    """Send the request to the engine and its answer to the client.

    Raises EngineDiedError while nothing has been sent to the client.
    """
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id)]
    try:
        response = await lease.connections.request("POST", path, headers=headers, body=body)
    except (OSError, TimeoutError, ConnectionLostError) as error:
        died = await _died(lease)
        if answer.has_started:
            await _end_with_error(answer, died)
            return
        raise died from error
    try:
        await _pass_back(lease, response, answer, received)
    finally:
        response.release()


async def _pass_back(
    lease: Lease, response: EngineResponse, answer: Answer, received: float
) -> None:
    if response.status >= 400:
        await _pass_error(lease, response, answer)
        return
    content_type = response.header(b"content-type") or b""
    if content_type.startswith(b"text/event-stream"):
        await _pass_stream(lease, response, answer, received)
    else:
        await _pass_whole(lease, response, answer)


async def _pass_stream(
    lease: Lease, response: EngineResponse, answer: Answer, received: float
) -> None:
    if not answer.has_started:
        await answer.start(response.status, STREAM_HEADERS)
    is_first = True
    at_boundary = True
    errors = ErrorEvents()
    try:
        async for chunk in response.chunks():
            if is_first:
                is_first = False
                lease.first_byte_after(time.monotonic() - received)
            if passed := errors.feed(chunk):
                at_boundary = passed.endswith(b"\n\n")
                await answer.body(passed)
    except ConnectionLostError:
        if not at_boundary:
            await answer.body(b"\n\n")
        await _end_with_error(answer, await _died(lease))
        return
    await answer.body(errors.rest(), more=False)


async def _pass_whole(lease: Lease, response: EngineResponse, answer: Answer) -> None:
    """The body is held until it is complete: a death in mid-answer is then a clear error."""
    try:
        body = b"".join([chunk async for chunk in response.chunks()])
    except ConnectionLostError as error:
        raise await _died(lease) from error
    if answer.has_started:
        # The client was told to expect a stream while the model was loaded.
        await answer.body(b"data: " + body + b"\n\ndata: [DONE]\n\n", more=False)
        return
    headers = [(key, value) for key, value in response.headers if key in _PASSED_BACK]
    if response.header(b"content-length") is None:
        headers.append((b"content-length", b"%d" % len(body)))
    await answer.start(response.status, headers)
    await answer.body(body, more=False)


async def _pass_error(lease: Lease, response: EngineResponse, answer: Answer) -> None:
    try:
        body = b"".join([chunk async for chunk in response.chunks()])
    except ConnectionLostError as error:
        raise await _died(lease) from error
    normalized = normalize_engine_error(response.status, body)
    if answer.has_started:
        await answer.body(error_event(normalized), more=False)
    else:
        await answer.json(response.status, encode_error(normalized))


async def _end_with_error(answer: Answer, error: EngineDiedError) -> None:
    """No `[DONE]` follows: the answer must not look complete."""
    await answer.body(error_event(openai_error(error)), more=False)


async def _died(lease: Lease) -> EngineDiedError:
    await asyncio.wait({lease.running.task}, timeout=_CAUSE_S)
    failure = lease.failure
    why = f": {failure.message}" if failure is not None else "."
    return EngineDiedError(
        f"The engine of {lease.model!r} ended while it worked on this request{why}",
        hint="Send the request again; a fresh engine is started for it.",
        retry_after_s=1.0,
    )
