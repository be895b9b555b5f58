"""Whether an engine that slept is what it was before: its answer and its memory. Pure.

Sleep mode breaks in ways that no status code tells: memory that stays, and weights that come back
as garbage. So one greedy answer is kept from before and compared with the one after.
"""

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.protocol.models import Task
from appliance.units import format_size

# Rounding differs between two runs of the same weights (the order of sums on a GPU); other weights
# are off by several nats.
_LOGPROB_TOLERANCE = 0.25
_LEAST_COSINE = 0.99
_LEAST_FREED = 0.8
_PROMPT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is"
_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine said: tokens with their natural logarithms, or a vector."""

    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    alternatives: tuple[dict[str, float], ...] = ()
    """For each token, the likeliest ones in its place."""
    vector: tuple[float, ...] = ()


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    logprobs: _Logprobs
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


def question(model: str, task: Task) -> tuple[str, dict[str, Any]]:
    """Path and body of a request whose answer depends on nothing but the weights."""
    if task is Task.EMBED:
        return "/v1/embeddings", {"model": model, "input": _PROMPT}
    return "/v1/completions", {
        "model": model,
        "prompt": _PROMPT,
        "max_tokens": _TOKENS,
        "temperature": 0,
        "logprobs": 3,
        "ignore_eos": True,
    }


def read_answer(task: Task, body: bytes) -> Answer | None:
    """The answer; None if it cannot be compared with another."""
    try:
        if task is Task.EMBED:
            vector = msgspec.json.decode(body, type=_Embeddings).data[0].embedding
            return Answer(vector=tuple(vector)) if vector else None
        choice = msgspec.json.decode(body, type=_Completion).choices[0]
    except (msgspec.MsgspecError, IndexError):
        return None
    found = choice.logprobs
    known = [each for each in found.token_logprobs if each is not None]
    if not known or len(known) != len(found.tokens) or choice.finish_reason == "abort":
        return None
    return Answer(
        tokens=tuple(found.tokens),
        logprobs=tuple(known),
        alternatives=tuple(each or {} for each in found.top_logprobs or ()),
    )


def difference(before: Answer, after: Answer) -> str | None:
    """How the second answer betrays other weights than the first; None: it does not."""
    if before.vector:
        cosine = _cosine(before.vector, after.vector)
        return None if cosine >= _LEAST_COSINE else f"its embedding changed (cosine {cosine:.3f})"
    if not after.tokens:
        return "it said nothing"
    for place, (old, new) in enumerate(zip(before.tokens, after.tokens, strict=False)):
        was = before.logprobs[place]
        if old == new:
            is_near = abs(was - after.logprobs[place]) <= _LOGPROB_TOLERANCE
        else:
            others = before.alternatives[place] if place < len(before.alternatives) else {}
            is_near = abs(was - others.get(new, -math.inf)) <= _LOGPROB_TOLERANCE
        if not is_near:
            return f"its greedy answer changed at token {place + 1}"
        if old != new:
            # Two tokens were equally likely; what follows on the other one says nothing.
            return None
    return None


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    if len(one) != len(other):
        return 0.0
    length = math.hypot(*one) * math.hypot(*other)
    dot = sum(left * right for left, right in zip(one, other, strict=True))
    # Not a number is no likeness either.
    return dot / length if length > 0 else 0.0


def too_little_freed(before_bytes: int, after_bytes: int, expected_bytes: int) -> str | None:
    """Why the sleep is not worth its name; None: the memory is back.

    `expected_bytes` are weights and KV cache by the plan. An engine that quantizes its weights
    while it loads them holds less than its files, so it is also enough if hardly anything is left.
    """
    freed = before_bytes - after_bytes
    if freed >= _LEAST_FREED * min(expected_bytes, before_bytes):
        return None
    if after_bytes <= (1 - _LEAST_FREED) * before_bytes:
        return None
    return (
        f"it gave back {format_size(max(freed, 0))} of {format_size(before_bytes)},"
        f" of which {format_size(expected_bytes)} are weights and KV cache"
    )
