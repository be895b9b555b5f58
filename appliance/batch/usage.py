"""Tokens that a batch has taken, from the answers of engines. Pure."""

from typing import Annotated

import msgspec

from appliance.protocol.batches import (
    BatchUsage,
    InputTokensDetails,
    OutputTokensDetails,
)

# Sums of more would not fit into what JSON decoders take.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)] | None


class _Details(msgspec.Struct):
    cached_tokens: _Count = 0
    reasoning_tokens: _Count = 0


class _Usage(msgspec.Struct):
    """Chat and completions count prompt and completion tokens, responses input and output."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    input_tokens: _Count = 0
    output_tokens: _Count = 0
    total_tokens: _Count = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Body).decode


class UsageCounter:
    """Adds up; answers without a usage count nothing."""

    def __init__(self, start: BatchUsage | None = None) -> None:
        start = start or BatchUsage()
        self._input = start.input_tokens
        self._cached = start.input_tokens_details.cached_tokens
        self._output = start.output_tokens
        self._reasoning = start.output_tokens_details.reasoning_tokens
        self._all = start.total_tokens

    @property
    def tokens(self) -> int:
        """All of them."""
        return self._all

    def add(self, body: bytes) -> None:
        """The tokens of one answer."""
        try:
            usage = _decode(body).usage
        except (ValueError, RecursionError):
            return
        if usage is None:
            return
        given = (usage.prompt_tokens or 0) + (usage.input_tokens or 0)
        made = (usage.completion_tokens or 0) + (usage.output_tokens or 0)
        self._input += given
        self._output += made
        self._all += usage.total_tokens or given + made
        for details in (usage.prompt_tokens_details, usage.input_tokens_details):
            self._cached += (details.cached_tokens or 0) if details else 0
        for details in (usage.completion_tokens_details, usage.output_tokens_details):
            self._reasoning += (details.reasoning_tokens or 0) if details else 0

    def total(self) -> BatchUsage:
        """So far."""
        return BatchUsage(
            input_tokens=self._input,
            input_tokens_details=InputTokensDetails(cached_tokens=self._cached),
            output_tokens=self._output,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._reasoning),
            total_tokens=self._all,
        )
