"""What a line of a batch's results says, whatever endpoint it is of. Pure."""

from typing import Any

import msgspec

from appliance.batch.journal import line_number


class _Answer(msgspec.Struct):
    status_code: int | None = None
    body: Any = None


class _Line(msgspec.Struct):
    id: str
    custom_id: str
    response: _Answer | None = None
    error: dict[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one model answered to one request."""

    status_code: int | None = None
    """None for a line that never ran."""
    text: str | None = None
    """None if there is no answer."""
    error: str | None = None
    usage: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Line).decode


def place_of(batch_id: str, line: bytes) -> tuple[int, str]:
    """Number of the request, from 0, and its custom_id. Raises MsgspecError and ValueError."""
    result = _decode(line)
    return line_number(batch_id, result.id), result.custom_id


def answer_of(line: bytes) -> tuple[Answer, bytes | None]:
    """The answer of a line of a result file, and what is equal where answers are equal.

    The latter is None where there is no answer. Raises MsgspecError.
    """
    result = _decode(line)
    response = result.response
    if response is None:
        return Answer(error=_message(result.error)), None
    body = response.body if isinstance(response.body, dict) else {}
    if response.status_code != 200:
        error = _message(body.get("error"))
        return Answer(status_code=response.status_code, error=error), None
    usage = body.get("usage")
    answer = Answer(
        status_code=200, text=text_of(body), usage=usage if isinstance(usage, dict) else None
    )
    return answer, _content(body, answer.text or "")


def _content(body: dict[str, Any], text: str) -> bytes:
    """The words; of vectors and scores all numbers, of which the text is a short form."""
    for name in ("data", "results"):
        if name in body:
            return msgspec.json.encode(body[name])
    return text.encode()


def text_of(body: dict[str, Any]) -> str:
    """The answer in words; what has none is told in short."""
    match body:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {"tool_calls": [*calls]}}, *_]} if calls:
            # Without their ids, which are new each time.
            return msgspec.json.encode([call.get("function") for call in calls]).decode()
        case {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"output": [*items]}:
            parts = (part for item in items if isinstance(item, dict)
                     for part in item.get("content") or ())  # fmt: skip
            return "".join(
                part["text"] for part in parts if isinstance(part, dict) and "text" in part
            )
        case {"data": [{"embedding": vector}, *_] as data}:
            size = len(vector) if isinstance(vector, list) else "base64"
            return f"{len(data)} embeddings of {size}" if len(data) > 1 else f"embedding of {size}"
        case {"data": [{"score": _}, *_] as data}:
            return " ".join(f"{each['score']:.4g}" for each in data)
        case {"results": [{"relevance_score": _}, *_] as ranked}:
            return " ".join(f"{each['index']}:{each['relevance_score']:.4g}" for each in ranked)
        case _:
            return msgspec.json.encode(body).decode()


def _message(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "no reason given")
