"""The one place that turns errors into HTTP: status codes, and OpenAI's error object.

OpenAI's object has four keys, `message`, `type`, `param` and `code`; code is a string or null
(https://platform.openai.com/docs/guides/error-codes, and what the SDK reads).
"""

import logging
from typing import Any

import msgspec

from appliance.errors import ApplianceError

logger = logging.getLogger(__name__)

_STATUS = {
    "invalid_request": 400,
    "invalid_api_key": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "body_too_large": 413,
    "queue_full": 429,
    "bad_config": 500,
    "internal_error": 500,
    "device_error": 503,
    "engine_environment": 503,
    "unavailable": 503,
    "model_load_failed": 503,
    "does_not_fit": 503,
    "insufficient_storage": 507,
    "engine_died": 503,
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_ERROR_START = b'data: {"error"'
_UNCODED = {"invalid_request", "conflict"}
_LONGEST_MESSAGE = 4000


class OpenAiError(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAiErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer that is no success, and `data:` of an error event."""

    error: OpenAiError


_encode = msgspec.json.Encoder().encode


def status_of(error: ApplianceError) -> int:
    """HTTP status."""
    return _STATUS.get(error.code, 500)


def retry_after_of(error: ApplianceError) -> int | None:
    """Whole seconds for `Retry-After`, where the error knows."""
    seconds = getattr(error, "retry_after_s", None)
    return None if seconds is None else max(round(seconds), 1)


def openai_error(error: ApplianceError) -> OpenAiError:
    """The error in OpenAI's words."""
    return OpenAiError(
        message=str(error),
        type=_type_of(status_of(error)),
        param=error.param,
        code=getattr(error, "detail_code", None) if error.code in _UNCODED else error.code,
    )


def encode_error(error: OpenAiError) -> bytes:
    """JSON."""
    return _encode(OpenAiErrorBody(error=error))


def error_event(error: OpenAiError) -> bytes:
    """A server-sent event that SDKs raise as an error."""
    return b"data: " + encode_error(error) + b"\n\n"


def unexpected(error: BaseException) -> ApplianceError:
    """A bug of ours: the log gets the traceback, the client a plain sentence."""
    logger.error("request.failed error=%s", error, exc_info=error)
    return ApplianceError(
        "The server failed to handle this request.",
        hint="Its log says more (`journalctl -u vllm-appliance`).",
    )


def normalize_engine_error(status: int, body: bytes) -> OpenAiError:
    """An engine's error body in OpenAI's shape.

    vLLM 0.32 sends the status as a number in `code`, `{"detail": ...}` for unknown paths, and a
    plain string for a missing key.
    """
    try:
        decoded: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        decoded = None
    inner = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if not isinstance(inner, dict):
        inner = {"message": inner if isinstance(inner, str) else _text(body)}
    message = inner.get("message") or inner.get("detail") or f"The engine answered {status}."
    code, param = inner.get("code"), inner.get("param")
    if code == status or not isinstance(code, str) or code.isdigit():
        code = None
    return OpenAiError(
        message=str(message)[:_LONGEST_MESSAGE],
        type=_type_of(status),
        param=param if isinstance(param, str) else None,
        code=code,
    )


class ErrorEvents:
    """Rewrites vLLM's error events inside a stream; everything else stays as it is.

    Pieces of a stream need not end where an event ends: the beginning of what may be an error
    event is held back until the rest has come.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What can be passed on now."""
        if not self._held and chunk.endswith(b"\n\n") and _ERROR_START not in chunk:
            return chunk
        events = (self._held + chunk).split(b"\n\n")
        tail = events.pop()
        is_suspect = tail.startswith(_ERROR_START) or (tail and _ERROR_START.startswith(tail))
        self._held = tail if is_suspect else b""
        passed = b"".join(_rewritten(event) + b"\n\n" for event in events)
        return passed if is_suspect else passed + tail

    def rest(self) -> bytes:
        """What is still held at the end of the stream."""
        held, self._held = self._held, b""
        return held


def _rewritten(event: bytes) -> bytes:
    if not event.startswith(_ERROR_START):
        return event
    return b"data: " + encode_error(normalize_engine_error(500, event[len(b"data: ") :]))


def _type_of(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def _text(body: bytes) -> str:
    return body[:_LONGEST_MESSAGE].decode("utf-8", errors="replace").strip()
