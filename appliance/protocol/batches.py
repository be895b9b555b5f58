"""Batches of OpenAI's Batch API, and what the owner sees of them beyond it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from appliance.protocol.base import Wire


class BatchStatus(StrEnum):
    """OpenAI's words; the last four are final."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    FAILED = "failed"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing changes any more."""
        return self in _FINAL


_FINAL = {
    BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED,
}  # fmt: skip


class BatchError(Wire, frozen=True, kw_only=True):
    """What is wrong with the input file, and in which line (the first one is 1)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(Wire, frozen=True, kw_only=True):
    """OpenAI's list of them."""

    object: Literal["list"] = "list"
    data: list[BatchError] = []


class RequestCounts(Wire, frozen=True, kw_only=True):
    """Lines of a batch; all zero while it is validated."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(Wire, frozen=True, kw_only=True):
    """Of them, found in the prefix cache."""

    cached_tokens: int = 0


class OutputTokensDetails(Wire, frozen=True, kw_only=True):
    """Of them, spent on reasoning."""

    reasoning_tokens: int = 0


class BatchUsage(Wire, frozen=True, kw_only=True):
    """Tokens of all lines that were answered."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class Batch(Wire, frozen=True, kw_only=True):
    """OpenAI's Batch object; every key is always there. Times are unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    """None for several models, and before it is known."""
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None


class BatchList(Wire, frozen=True, kw_only=True):
    """One page, newest first."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class BatchProgress(Wire, frozen=True, kw_only=True):
    """What the owner sees beyond the Batch object."""

    batch: Batch
    models: list[str] = []
    is_paused: bool = False
    """By the owner."""
    problem: str | None = None
    """Why it does not move, for a person."""
    in_flight: int = 0
    retried: int = 0
    lines_per_s: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    waited_s: float = 0.0
    """For an engine, in all."""


class LineFailure(Wire, frozen=True, kw_only=True):
    """A line of a batch that has an error instead of an answer."""

    line: int
    """Of the requests of the input file; the first one is 1."""
    custom_id: str
    status_code: int | None = None
    """The engine's answer; None for a line that never ran."""
    code: str | None = None
    message: str


ENDED_SHOWN = 20
"""How many batches that are over the snapshot holds."""


def without_old(batches: Mapping[str, BatchProgress]) -> dict[str, BatchProgress]:
    """The open ones and the newest of those that are over; by time of creation, then id."""
    ordered = sorted(batches.items(), key=lambda item: (item[1].batch.created_at, item[0]))
    ended = [name for name, each in ordered if each.batch.status.is_final]
    old = set(ended[:-ENDED_SHOWN])
    return {name: each for name, each in ordered if name not in old}
