"""One line through one engine: its answer, or what is to be done about it."""

import asyncio
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from appliance.batch.lines import check_depth
from appliance.engine.connection import ConnectionLostError
from appliance.errors import ApplianceError, EngineDiedError, ModelNotFoundError
from appliance.gateway.errors import (
    OpenAiError,
    encode_error,
    normalize_engine_error,
    openai_error,
)
from appliance.slots.leases import Lease
from appliance.slots.scheduler import SlotScheduler
from appliance.slots.slot import Priority

# Where vLLM has an endpoint under another path.
_PATHS = {"/v1/classify": "/classify"}
_CAUSE_S = 5.0
_NO_JSON = OpenAiError(message="The engine's answer is no JSON.", type="server_error")

_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode


class Fate(Enum):
    """What becomes of a line after one try."""

    ANSWERED = auto()
    REFUSED = auto()
    """By the engine, for good: it says the same again."""
    AGAIN = auto()
    """Its engine was stopped under it, as planned."""
    BROKEN = auto()
    """The engine answered with an error of its own, and lives."""
    SUSPECT = auto()
    """Its engine failed while it worked on it, and perhaps for it."""
    NO_ENGINE = auto()
    """It did not get to an engine."""


@dataclass(frozen=True)
class Outcome:
    """What one try brought."""

    fate: Fate
    status: int = 0
    body: bytes = b""
    error: ApplianceError | None = None
    engine_id: str = ""
    """The engine that failed."""


async def attempt(
    slots: SlotScheduler, model: str, endpoint: str, body: bytes, request_id: bytes
) -> Outcome:
    """Lease an engine and ask it."""
    try:
        async with slots.lease(model, Priority.BATCH) as lease:
            return await _ask(lease, _PATHS.get(endpoint, endpoint), body, request_id)
    except ModelNotFoundError as error:
        return Outcome(Fate.REFUSED, 404, encode_error(openai_error(error)))
    except ApplianceError as error:
        return Outcome(Fate.NO_ENGINE, error=error)


async def _ask(lease: Lease, path: str, body: bytes, request_id: bytes) -> Outcome:
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id)]
    if lease.has_priorities:
        body = after_people(body)
    try:
        response = await lease.connections.request("POST", path, headers=headers, body=body)
        answer = await response.read()
    except (OSError, TimeoutError, ConnectionLostError):
        if lease.running.is_leaving:
            return Outcome(Fate.AGAIN)
        died = encode_error(openai_error(await _died(lease)))
        return Outcome(Fate.SUSPECT, 503, died, engine_id=lease.engine_id)
    if response.status == 200:
        try:
            return Outcome(Fate.ANSWERED, 200, one_line(answer))
        except (ValueError, RecursionError):
            return Outcome(Fate.BROKEN, 502, encode_error(_NO_JSON))
    fate = Fate.BROKEN if response.status >= 500 else Fate.REFUSED
    error = encode_error(normalize_engine_error(response.status, answer))
    return Outcome(fate, response.status, error)


def after_people(body: bytes) -> bytes:
    """The same request, worked on after those of people (vLLM: lower numbers go first).

    A name that is there twice counts as it stands last.
    """
    inner = body.strip()[1:-1].rstrip()
    return b"{" + inner + (b"," if inner else b"") + b'"priority":1}'


async def _died(lease: Lease) -> EngineDiedError:
    await asyncio.wait({lease.running.task}, timeout=_CAUSE_S)
    failure = lease.failure
    why = f": {failure.message}" if failure is not None else "."
    return EngineDiedError(
        f"The engine of {lease.model!r} ended while it worked on this request{why}"
    )


def one_line(answer: bytes) -> bytes:
    """JSON without line feeds, which would end the result. Raises ValueError, RecursionError.

    What is no JSON would look like a torn result to who reads the file after a crash.
    """
    answer = answer.strip()
    answer.decode()
    _decode_raw(answer)
    check_depth(answer)
    return b" ".join(answer.splitlines()) if b"\n" in answer else answer
