"""Stored files and batches. Functions for `Database.read` and `write`."""

import msgspec

from appliance.protocol.batches import Batch
from appliance.protocol.files import File
from appliance.store.tables import BatchRow, FileRow


class FileInUseError(Exception):
    """A batch that is not over reads the file."""


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `batches`: the object that clients see, and what they do not see."""

    batch: Batch
    output_file_id: str
    """Shown once the file is complete."""
    error_file_id: str
    output_expires_after_s: int | None = None
    has_all_results: bool = False
    """Every line has one; what is left is to make them files."""
    is_paused: bool = False
    models: list[str] = []
    waited_s: float = 0.0
    retried: int = 0


def put_file(file: File) -> None:
    """Add or replace."""
    FileRow.replace(
        id=file.id,
        created_at=file.created_at,
        expires_at=file.expires_at,
        purpose=file.purpose,
        object=msgspec.json.encode(file).decode(),
    ).execute()


def find_file(file_id: str) -> File | None:
    """A file by its id."""
    row = FileRow.get_or_none(FileRow.id == file_id)
    return None if row is None else _file(row)


def files_page(
    *, after: str | None, limit: int, newest_first: bool, purpose: str | None
) -> list[File] | None:
    """A page of files by order of creation; None if `after` is not known.

    The order is that of the numbers: clocks may be set back.
    """
    query = FileRow.select()
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    if after is not None:
        last = FileRow.get_or_none(FileRow.id == after)
        if last is None:
            return None
        query = query.where(
            FileRow.number < last.number if newest_first else FileRow.number > last.number
        )
    order = FileRow.number.desc() if newest_first else FileRow.number.asc()
    return [_file(row) for row in query.order_by(order).limit(limit)]


def delete_file(file_id: str) -> bool:
    """Whether it was there. Raises FileInUseError; nothing comes between look and deletion."""
    if is_in_use(file_id):
        raise FileInUseError(file_id)
    return bool(FileRow.delete().where(FileRow.id == file_id).execute())


def expired_files(now: int) -> list[str]:
    """Ids of the files whose time is over."""
    query = FileRow.select(FileRow.id).where(FileRow.expires_at <= now)
    return [row.id for row in query]


def all_file_ids() -> set[str]:
    """Every known file."""
    return {row.id for row in FileRow.select(FileRow.id)}


def add_batch(stored: StoredBatch) -> bool:
    """Whether its input file was there still; else nothing was added."""
    if find_file(stored.batch.input_file_id) is None:
        return False
    put_batch(stored)
    return True


def put_batch(stored: StoredBatch) -> None:
    """Add or replace."""
    values = {
        "created_at": stored.batch.created_at,
        "is_final": stored.batch.status.is_final,
        "object": msgspec.json.encode(stored).decode(),
    }
    changed = BatchRow.update(**values).where(BatchRow.id == stored.batch.id).execute()
    if not changed:
        BatchRow.create(id=stored.batch.id, **values)


def find_batch(batch_id: str) -> StoredBatch | None:
    """A batch by its id."""
    row = BatchRow.get_or_none(BatchRow.id == batch_id)
    return None if row is None else _batch(row)


def batches_page(*, after: str | None, limit: int) -> list[StoredBatch] | None:
    """A page of batches, newest first; None if `after` is not known."""
    query = BatchRow.select()
    if after is not None:
        last = BatchRow.get_or_none(BatchRow.id == after)
        if last is None:
            return None
        query = query.where(BatchRow.number < last.number)
    return [_batch(row) for row in query.order_by(BatchRow.number.desc()).limit(limit)]


def is_in_use(file_id: str) -> bool:
    """Whether an open batch reads the file."""
    return any(stored.batch.input_file_id == file_id for stored in open_batches())


def open_batches() -> list[StoredBatch]:
    """Those that are not over, oldest first."""
    query = BatchRow.select().where(~BatchRow.is_final).order_by(BatchRow.number)
    return [_batch(row) for row in query]


def recent_batches(ended: int) -> list[StoredBatch]:
    """The open ones and so many of those that are over, oldest first."""
    newest = BatchRow.select(BatchRow.number).where(BatchRow.is_final)
    newest = newest.order_by(BatchRow.number.desc()).limit(ended)
    query = BatchRow.select().where(~BatchRow.is_final | BatchRow.number.in_(newest))
    return [_batch(row) for row in query.order_by(BatchRow.number)]


def _file(row: FileRow) -> File:
    return msgspec.json.decode(row.object, type=File)


def _batch(row: BatchRow) -> StoredBatch:
    return msgspec.json.decode(row.object, type=StoredBatch)
