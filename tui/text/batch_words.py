"""Batches in words; the same in the list, below it and in dialogs. Pure."""

from datetime import UTC, datetime

from appliance.protocol.batches import BatchError, BatchProgress, BatchStatus, LineFailure
from tui.text import format as text
from tui.text.glyphs import Glyphs
from tui.text.sanitize import sanitize_line

_PREFIX_LENGTH = len("batch_") + 8


def short_id(progress: BatchProgress) -> str:
    """Enough of the id to tell it from others, and for the command line."""
    return sanitize_line(progress.batch.id[:_PREFIX_LENGTH])


def models(progress: BatchProgress, glyphs: Glyphs) -> str:
    """What it asks."""
    names = progress.models or ([progress.batch.model] if progress.batch.model else [])
    return sanitize_line(", ".join(names)) or glyphs.none


def is_paused(progress: BatchProgress) -> bool:
    """Whether its owner holds it while it could go on."""
    return progress.is_paused and progress.batch.status is BatchStatus.IN_PROGRESS


def can_retry(progress: BatchProgress) -> bool:
    """Whether it is over and has lines without an answer."""
    batch = progress.batch
    has_errors = batch.error_file_id is not None
    return batch.status.is_final and batch.status is not BatchStatus.FAILED and has_errors


def status(progress: BatchProgress, glyphs: Glyphs) -> tuple[str, str]:
    """Mark and word, and the style of both."""
    if is_paused(progress):
        return f"{glyphs.connecting} paused", "asleep"
    now = progress.batch.status
    mark, style = {
        BatchStatus.COMPLETED: (glyphs.live, "good"),
        BatchStatus.FAILED: (glyphs.error, "error"),
        BatchStatus.EXPIRED: (glyphs.over, "warn"),
        BatchStatus.CANCELLED: (glyphs.over, "muted"),
    }.get(now, (glyphs.stale, "busy"))
    if progress.problem and not now.is_final:
        style = "warn"
    return f"{mark} {now.value}", style


def done_ratio(progress: BatchProgress) -> float | None:
    """Lines with a result; None while their number is not known."""
    counts = progress.batch.request_counts
    return (counts.completed + counts.failed) / counts.total if counts.total else None


def percent(progress: BatchProgress, glyphs: Glyphs) -> str:
    """Rounded down: 100% is all of them."""
    ratio = done_ratio(progress)
    return glyphs.none if ratio is None else f"{int(ratio * 100)}%"


def done(progress: BatchProgress) -> str:
    """`40,512/50,000`."""
    counts = progress.batch.request_counts
    return f"{text.count(counts.completed + counts.failed)}/{text.count(counts.total)}"


def rate(progress: BatchProgress, glyphs: Glyphs) -> str:
    """Lines per second."""
    if progress.lines_per_s is None or progress.batch.status.is_final or is_paused(progress):
        return glyphs.none
    return text.rate(progress.lines_per_s)


def left(progress: BatchProgress, glyphs: Glyphs) -> str:
    """Time until it is done, at the rate of the last half minute."""
    is_moving = progress.batch.status is BatchStatus.IN_PROGRESS and not progress.is_paused
    if not is_moving or progress.eta_s is None:
        return glyphs.none
    return text.clock_span(progress.eta_s)


def trouble(progress: BatchProgress) -> str | None:
    """What hinders it, or why it is worth nothing."""
    if progress.batch.errors is not None and progress.batch.errors.data:
        errors = progress.batch.errors.data
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return f"{error_line(errors[0])}{more}"
    return None if progress.problem is None else sanitize_line(progress.problem)


def error_line(error: BatchError) -> str:
    """A problem of the input file."""
    where = "" if error.line is None else f"line {error.line}: "
    return sanitize_line(f"{where}{error.message}")


def failure_line(failure: LineFailure) -> str:
    """A line that has an error instead of an answer."""
    code = "not run" if failure.status_code is None else str(failure.status_code)
    return sanitize_line(f"line {failure.line} {failure.custom_id}: {code} {failure.message}")


def moment(seconds: int) -> datetime:
    """Of the unix time that batches have."""
    return datetime.fromtimestamp(seconds, UTC)


def ended_at(progress: BatchProgress) -> int | None:
    """When it became what it is at the end."""
    batch = progress.batch
    return batch.completed_at or batch.failed_at or batch.cancelled_at or batch.expired_at


def tokens(progress: BatchProgress, glyphs: Glyphs) -> str:
    """Read and written, and how fast."""
    usage = progress.batch.usage
    if usage is None:
        return glyphs.none
    told = f"{text.count(usage.input_tokens)} read, {text.count(usage.output_tokens)} written"
    if progress.tokens_per_s is None or progress.batch.status.is_final:
        return told
    return f"{told} {glyphs.dot} {text.rate(progress.tokens_per_s)} tok/s"
