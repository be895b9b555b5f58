"""Batches by what people type, and in the words that people read."""

from datetime import UTC, datetime
from urllib.parse import quote

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.output import safe
from appliance.protocol.batches import Batch, BatchProgress, BatchStatus
from appliance.units import format_duration

_PREFIX = "batch_"
_ID_LENGTH = len(_PREFIX) + 32
_SHORT_LENGTH = len(_PREFIX) + 8
_NEWEST = 100


def find_batch(client: ServerClient, given: str) -> BatchProgress:
    """By its id, or the beginning of one of the newest hundred. Raises ServerError."""
    name = given if given.startswith(_PREFIX) else _PREFIX + given
    if len(name) >= _ID_LENGTH:
        return client.get(path_of(name), BatchProgress)
    newest = client.get("/admin/v1/batches", list[BatchProgress], limit=_NEWEST)
    found = [each for each in newest if each.batch.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    what = "Several batches begin" if found else "No batch begins"
    raise ServerError(
        f"{what} with {name}.", hint="`appliance batch ls` lists the newest; --json in full."
    )


def path_of(batch_id: str) -> str:
    """Of a batch in the management API."""
    return f"/admin/v1/batches/{quote(batch_id, safe='')}"


def short(batch_id: str) -> str:
    """Enough of an id to type it."""
    return safe(batch_id[:_SHORT_LENGTH])


def models_text(progress: BatchProgress) -> str:
    """What it asks."""
    models = progress.models or ([progress.batch.model] if progress.batch.model else [])
    return safe(", ".join(models)) or "-"


def state_text(progress: BatchProgress) -> str:
    """Status, and whether it is paused."""
    return "paused" if is_paused(progress) else progress.batch.status.value


def is_paused(progress: BatchProgress) -> bool:
    """Whether its owner holds it while it could go on."""
    return progress.is_paused and progress.batch.status is BatchStatus.IN_PROGRESS


def done_ratio(batch: Batch) -> float | None:
    """Lines with a result; None while their number is not known."""
    counts = batch.request_counts
    return (counts.completed + counts.failed) / counts.total if counts.total else None


def done_text(batch: Batch) -> str:
    """Lines with a result, of all."""
    counts = batch.request_counts
    return f"{counts.completed + counts.failed:,}/{counts.total:,}"


def rate_text(progress: BatchProgress) -> str:
    """Lines per second."""
    rate = progress.lines_per_s
    if rate is None or progress.batch.status.is_final or is_paused(progress):
        return "-"
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def eta_text(progress: BatchProgress) -> str:
    """Time left."""
    is_moving = progress.batch.status is BatchStatus.IN_PROGRESS and not progress.is_paused
    return format_duration(progress.eta_s) if is_moving and progress.eta_s is not None else "-"


def time_text(moment: int | None) -> str:
    """Where the reader is."""
    if moment is None:
        return "-"
    return f"{datetime.fromtimestamp(moment, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def ended_at(batch: Batch) -> int | None:
    """When it became what it is at the end."""
    return batch.completed_at or batch.failed_at or batch.cancelled_at or batch.expired_at


def has_all_answers(batch: Batch) -> bool:
    """Whether every line was answered."""
    return batch.status is BatchStatus.COMPLETED and not batch.request_counts.failed
