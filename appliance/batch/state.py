"""What a batch goes through. Pure: each function gives the batch after a step.

validating -> in_progress -> finalizing -> completed
validating -> failed; in_progress -> finalizing -> expired
in_progress, finalizing, cancelling -> failed, if the input file cannot be read any more
validating, in_progress, finalizing -> cancelling -> cancelled
"""

from msgspec.structs import replace

from appliance.errors import ConflictError
from appliance.protocol.batches import (
    Batch,
    BatchError,
    BatchErrors,
    BatchStatus,
    BatchUsage,
    RequestCounts,
)

EXPIRED = (
    "batch_expired",
    "This request could not be executed before the completion window expired.",
)
CANCELLED = ("batch_cancelled", "This request was not executed: the batch was cancelled.")


def failed(batch: Batch, errors: list[BatchError], now: int) -> Batch:
    """Its file is wrong; nothing runs."""
    return replace(batch, status=BatchStatus.FAILED, failed_at=now, errors=BatchErrors(data=errors))


def started(batch: Batch, total: int, models: list[str], now: int) -> Batch:
    """Its file is sound."""
    return replace(
        batch,
        status=BatchStatus.IN_PROGRESS,
        in_progress_at=now,
        request_counts=RequestCounts(total=total),
        model=models[0] if len(models) == 1 else None,
    )


def counted(
    batch: Batch, total: int, completed: int, lines_failed: int, usage: BatchUsage
) -> Batch:
    """So many lines have results on the disk."""
    counts = RequestCounts(total=total, completed=completed, failed=lines_failed)
    return replace(batch, request_counts=counts, usage=usage)


def broken(batch: Batch, errors: list[BatchError]) -> Batch:
    """Its file cannot be read any more; it will end with the results that it has."""
    return replace(batch, errors=BatchErrors(data=errors))


def finalizing(batch: Batch, now: int) -> Batch:
    """All lines were tried."""
    if batch.status is not BatchStatus.IN_PROGRESS:
        return batch
    return replace(batch, status=BatchStatus.FINALIZING, finalizing_at=now)


def cancelling(batch: Batch, now: int) -> Batch:
    """Its owner wants no more of it. Raises ConflictError."""
    if batch.status in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
        return batch
    if batch.status.is_final:
        raise ConflictError(f"Cannot cancel a batch with status '{batch.status.value}'.")
    return replace(batch, status=BatchStatus.CANCELLING, cancelling_at=now)


def ended(
    batch: Batch, *, output_file_id: str | None, error_file_id: str | None, now: int
) -> Batch:
    """Its files are complete."""
    batch = replace(batch, output_file_id=output_file_id, error_file_id=error_file_id)
    if batch.errors is not None:
        return replace(batch, status=BatchStatus.FAILED, failed_at=now)
    if batch.status is BatchStatus.CANCELLING:
        return replace(batch, status=BatchStatus.CANCELLED, cancelled_at=now)
    if batch.expired_at is not None:
        return replace(batch, status=BatchStatus.EXPIRED)
    return replace(batch, status=BatchStatus.COMPLETED, completed_at=now)


def expired(batch: Batch, now: int) -> Batch:
    """Its time is over; what has results keeps them."""
    return replace(finalizing(batch, now), expired_at=now)
