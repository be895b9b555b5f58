"""One line of a batch's input: what it asks for, or what is wrong with it. Pure.

Codes as OpenAI gives them, where they are known; else as Azure documents them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.protocol.batches import BatchError
from appliance.protocol.models import Task

ENDPOINTS: dict[str, frozenset[Task]] = {
    "/v1/chat/completions": frozenset({Task.GENERATE}),
    "/v1/completions": frozenset({Task.GENERATE}),
    "/v1/responses": frozenset({Task.GENERATE}),
    "/v1/embeddings": frozenset({Task.EMBED}),
    "/v1/score": frozenset({Task.EMBED}),
    "/v1/rerank": frozenset({Task.EMBED}),
    "/v1/classify": frozenset({Task.EMBED}),
}
"""Endpoints that a batch may use, and what a model must be for."""

_NEEDED = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
}
_MISSING = "missing_required_parameter"
_SEPARATORS = b" \t\r"
_SPARE_DEPTH = 200
_LONGEST_SHOWN = 200


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None
    messages: Any = msgspec.UNSET
    prompt: Any = msgspec.UNSET
    input: Any = msgspec.UNSET


class _Line(msgspec.Struct):
    custom_id: Any = msgspec.UNSET
    method: Any = msgspec.UNSET
    url: Any = msgspec.UNSET
    body: Any = msgspec.UNSET


class _Wanted(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw


@dataclass(frozen=True)
class Request:
    """A line that may run."""

    custom_id: str
    model: str
    inputs: int = 1
    """How many texts it embeds."""


ModelCheck = Callable[[str], Task | None]
"""What a model of that name is for; None if there is none."""

_decode_line = msgspec.json.Decoder(_Line).decode
_decode_wanted = msgspec.json.Decoder(_Wanted).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode


def is_blank(line: bytes) -> bool:
    """Whether the line holds nothing; such lines are skipped."""
    return not line.strip(_SEPARATORS)


def check_line(
    line: bytes, number: int, endpoint: str, task_of: ModelCheck
) -> Request | list[BatchError]:
    """The request of a line, or all that is wrong with it; the first line's number is 1."""
    try:
        # Strings are only checked for being UTF-8 when they are decoded.
        line.decode()
        parsed = _decode_line(line)
        check_depth(line)
    except (ValueError, RecursionError):
        message = "This line is not parseable as valid JSON."
        return [BatchError(code="invalid_json_line", message=message, line=number)]
    found = list(_problems(parsed, endpoint, task_of))
    if found:
        return [msgspec.structs.replace(each, line=number) for each in found]
    return Request(parsed.custom_id, parsed.body["model"], _inputs(parsed.body, endpoint))


def request_of(line: bytes) -> tuple[str, bytes]:
    """custom_id and body, as it stands, of a line that was checked. Raises ValueError."""
    wanted = _decode_wanted(line)
    return wanted.custom_id, bytes(wanted.body)


def check_depth(line: bytes) -> None:
    """Whoever reads it later has less of the stack left. Raises RecursionError."""
    if line.count(b"[") + line.count(b"{") > _SPARE_DEPTH:
        _decode_raw(b"[" * _SPARE_DEPTH + line + b"]" * _SPARE_DEPTH)


def _problems(line: _Line, endpoint: str, task_of: ModelCheck) -> Iterator[BatchError]:
    for name in ("custom_id", "method", "url", "body"):
        if getattr(line, name) in (msgspec.UNSET, None):
            yield BatchError(
                code=_MISSING, message=f"Missing required parameter: '{name}'.", param=name
            )
    if line.custom_id not in (msgspec.UNSET, None) and not isinstance(line.custom_id, str):
        yield _wrong("custom_id", "a string", "invalid_type")
    elif line.custom_id == "":
        yield _wrong("custom_id", "a string that is not empty", "invalid_value")
    if line.method not in (msgspec.UNSET, None, "POST"):
        yield _wrong("method", "POST", "invalid_method")
    if line.url not in (msgspec.UNSET, None, endpoint):
        message = f"The URL provided for this request must be the batch's endpoint, {endpoint}."
        yield BatchError(code="invalid_url", message=message, param="url")
    if isinstance(line.body, dict):
        yield from _body_problems(line.body, endpoint, task_of)
    elif line.body not in (msgspec.UNSET, None):
        yield _wrong("body", "an object", "invalid_type")


def _body_problems(
    body: dict[str, Any], endpoint: str, task_of: ModelCheck
) -> Iterator[BatchError]:
    if body.get("stream"):
        yield BatchError(
            code="streaming_unsupported",
            message="Streaming is not supported by the Batch API.",
            param="body.stream",
        )
    model = body.get("model")
    if not isinstance(model, str) or not model:
        yield BatchError(
            code="invalid_request", message="Model parameter is required.", param="body.model"
        )
    elif (task := task_of(model)) is None:
        yield BatchError(
            code="model_not_found",
            message=f"The provided model '{model[:_LONGEST_SHOWN]}' is not supported by the"
            " Batch API.",
            param="body.model",
        )
    elif task not in ENDPOINTS[endpoint]:
        yield BatchError(
            code="model_not_found",
            message=f"The model '{model}' is for {task.value}; it does not serve {endpoint}.",
            param="body.model",
        )
    needed = _NEEDED.get(endpoint)
    if needed is not None and body.get(needed) is None:
        yield BatchError(
            code="invalid_request",
            message=f"{needed.capitalize()} parameter is required.",
            param=f"body.{needed}",
        )


def _inputs(body: dict[str, Any], endpoint: str) -> int:
    given = body.get("input") if endpoint == "/v1/embeddings" else None
    is_many = isinstance(given, list) and given and not isinstance(given[0], int)
    return len(given) if is_many and isinstance(given, list) else 1


def _wrong(param: str, expected: str, code: str) -> BatchError:
    return BatchError(
        code=code, message=f"Invalid value for '{param}': expected {expected}.", param=param
    )
