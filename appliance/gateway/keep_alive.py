"""How long a request wants its model to stay afterwards; the engine never hears of it.

As in Ollama (https://github.com/ollama/ollama/blob/main/docs/api.md): a number is seconds, a string
is a duration, zero unloads at once, below zero never. `ttl` is LM Studio's name for the same.
"""

import re
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError
from appliance.units import parse_duration

HEADER = b"x-keep-alive"
"""For clients that cannot add to the body, and for bodies that are not JSON."""

_FIELDS = ("keep_alive", "ttl")
_AMOUNT = re.compile(r"\d+(?:\.\d+)?|(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(r"\d+(?:\.\d+)?(?:ms|[smhd])?")
_MOST_S = 10 * 365 * 86400.0
# Key and value are not looked at but kept as they were written.
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_keep_alive(keep_alive: Any, ttl: Any, header: str | None) -> float | None:
    """Seconds that the model stays idle after the request; -1: for ever; None: as it is set.

    A value in the body beats the header, `keep_alive` beats `ttl`; null and unset say nothing.
    Raises InvalidRequestError.
    """
    found = None
    for name, value in (("X-Keep-Alive", header), ("ttl", ttl), ("keep_alive", keep_alive)):
        if value is not None and value is not msgspec.UNSET:
            # All are read: a wrong one is told even where another one counts.
            found = _seconds(name, value)
    return found


def without_keep_alive(body: bytes) -> bytes:
    """A JSON object without our fields; all others stay as they were written."""
    fields = _decode_fields(body)
    for name in _FIELDS:
        fields.pop(name, None)
    return msgspec.json.encode(fields)


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = _parse(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequestError(
            f"{name} is {_shown(value)}; it must be a number of seconds or a duration.",
            hint='Use for example 300, "5m" or "1h30m"; 0 unloads at once, -1 never.',
            param=name,
        ) from None
    return -1.0 if seconds < 0 else min(seconds, _MOST_S)


def _parse(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    if not isinstance(value, str):
        return float(value)
    text = value.strip().lower()
    if text == "never":
        return -1.0
    amount = text.removeprefix("-")
    if not _AMOUNT.fullmatch(amount):
        raise ValueError
    seconds = sum(parse_duration(part) for part in _PART.findall(amount))
    return seconds if amount == text else -seconds


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
