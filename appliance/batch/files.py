"""Files of the Files API: contents on disk under their ids, objects in the store."""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from appliance.batch.clock import Clock
from appliance.batch.journal import sync_directory
from appliance.errors import (
    BodyTooLargeError,
    ConflictError,
    InsufficientStorageError,
    InvalidRequestError,
    NotFoundError,
)
from appliance.protocol.files import File, FileList
from appliance.store.batches import (
    FileInUseError,
    all_file_ids,
    delete_file,
    expired_files,
    files_page,
    find_file,
    open_batches,
    put_file,
)
from appliance.store.database import Database
from appliance.units import format_size

logger = logging.getLogger(__name__)

BATCH_FILE_LIFE_S = 30 * 86400
"""OpenAI's, for files of batches."""
_LONGEST_NAME = 255
_PREFIX = "file-"
_PARTIAL = ".part"
_CHECK_EVERY_BYTES = 16 * 1024**2
_LEAST_FREE_BYTES = 64 * 1024


class FileStore:
    """All files of one appliance."""

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        most_bytes: int,
        reserve_bytes: int,
        clock: Clock,
    ) -> None:
        self._database = database
        self._directory = directory
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self.most_bytes = most_bytes

    async def open(self) -> None:
        """Remove what uploads and deletions that were cut off have left."""
        known = await self._database.read(_known_ids)
        await asyncio.to_thread(self._sweep, known)

    def path(self, file_id: str) -> Path:
        """Where its content is; an id that is none leads nowhere."""
        is_id = file_id.startswith(_PREFIX) and file_id.removeprefix(_PREFIX).isalnum()
        return self._directory / (file_id if is_id else "none")

    async def upload(self, declared_bytes: int | None) -> "Upload":
        """Begin to take a file. Raises BodyTooLargeError and InsufficientStorageError."""
        if declared_bytes is not None and declared_bytes > self.most_bytes:
            raise self._too_large()
        part = self._directory / f"{new_file_id()}{_PARTIAL}"
        await asyncio.to_thread(self.check_space, declared_bytes or 0)
        try:
            file = await asyncio.to_thread(part.open, "xb")
        except OSError as error:
            raise _disk_full(error) from error
        return Upload(self, part, file)

    async def keep(
        self,
        part: Path,
        *,
        filename: str,
        purpose: str,
        expires_after_s: int | None,
        file_id: str | None = None,
    ) -> File:
        """Make a file of a finished part; under a given id that may be done more than once.

        Raises OSError; under a new id nothing is left of it then.
        """
        is_new = file_id is None
        file_id = file_id or new_file_id()
        size = await asyncio.to_thread(_rename, part, self.path(file_id))
        now = self._clock.now()
        life_s = expires_after_s
        if life_s is None and purpose in {"batch", "batch_output"}:
            life_s = BATCH_FILE_LIFE_S
        file = File(
            id=file_id,
            bytes=size,
            created_at=now,
            expires_at=None if life_s is None else now + life_s,
            filename=filename[:_LONGEST_NAME],
            purpose=purpose,
        )
        try:
            await self._database.write(lambda: put_file(file))
        except OSError:
            if is_new:
                await asyncio.to_thread(_unlink, self.path(file_id))
            raise
        return file

    async def find(self, file_id: str) -> File:
        """Raises NotFoundError."""
        file = await self._database.read(lambda: find_file(file_id))
        if file is None:
            raise _no_such(file_id)
        return file

    async def page(
        self, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> FileList:
        """A page. Raises InvalidRequestError."""
        found = await self._database.read(
            lambda: files_page(
                after=after, limit=limit + 1, newest_first=newest_first, purpose=purpose
            )
        )
        if found is None:
            raise InvalidRequestError(f"No such File object: {after}", param="after")
        shown = found[:limit]
        return FileList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(found) > limit,
        )

    async def delete(self, file_id: str) -> None:
        """Raises NotFoundError, and ConflictError while a batch needs it."""
        try:
            was_there = await self._database.write(lambda: delete_file(file_id))
        except FileInUseError:
            raise ConflictError(
                f"A batch that is not over reads {file_id}.", hint="Cancel the batch first."
            ) from None
        if not was_there:
            raise _no_such(file_id)
        await asyncio.to_thread(_unlink, self.path(file_id))

    async def delete_expired(self) -> None:
        """Those whose time is over."""
        now = self._clock.now()
        for file_id in await self._database.read(lambda: expired_files(now)):
            with contextlib.suppress(ConflictError, NotFoundError):
                await self.delete(file_id)
                logger.info("files.expired id=%s", file_id)

    def has_space(self, more_bytes: int = 0) -> bool:
        """Whether so much can be written without touching the reserve. Blocks."""
        free = shutil.disk_usage(self._directory).free - more_bytes
        return free >= max(self._reserve_bytes, _LEAST_FREE_BYTES)

    def check_space(self, more_bytes: int) -> None:
        """Raises InsufficientStorageError. Blocks."""
        if not self.has_space(more_bytes):
            free = shutil.disk_usage(self._directory).free
            raise InsufficientStorageError(
                f"The server's disk has {format_size(free)} free; {format_size(more_bytes)} more"
                f" would leave less than {format_size(self._reserve_bytes)}.",
                hint="Delete files that are no longer needed, or ask the owner of this server.",
            )

    def check_size(self, size: int) -> None:
        """Raises BodyTooLargeError."""
        if size > self.most_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The file is larger than {format_size(self.most_bytes)}.",
            hint="Split it, or raise batches.max_file.",
            param="file",
        )

    def _sweep(self, known: set[str]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in self._directory.iterdir():
            if file.name.startswith(_PREFIX) and file.name not in known:
                _unlink(file)


class Upload:
    """A file that is being taken; `async with` removes what was not kept."""

    def __init__(self, store: FileStore, part: Path, file: BinaryIO) -> None:
        self._store = store
        self.part = part
        self.size = 0
        self._file = file
        self._checked_at = 0

    async def __aenter__(self) -> "Upload":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._remove)

    async def write(self, data: bytes) -> None:
        """The next piece. Raises BodyTooLargeError and InsufficientStorageError."""
        self.size += len(data)
        self._store.check_size(self.size)
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            raise _disk_full(error) from error

    async def close(self) -> None:
        """All of it is on the disk. Raises InsufficientStorageError."""
        try:
            await asyncio.to_thread(self._sync)
        except OSError as error:
            raise _disk_full(error) from error

    def _write(self, data: bytes) -> None:
        if self.size - self._checked_at >= _CHECK_EVERY_BYTES:
            # Others may be filling the disk, too, and not all say how much will come.
            self._checked_at = self.size
            self._store.check_space(0)
        self._file.write(data)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        _unlink(self.part)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _no_such(file_id: str) -> NotFoundError:
    return NotFoundError(f"No such File object: {file_id}", param="id")


def _unlink(file: Path) -> None:
    """What cannot be removed now is removed at the next start."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("files.not_removed name=%s error=%s", file.name, error)


def _known_ids() -> set[str]:
    """Results of a batch that is being finalized may be in place before their rows are."""
    promised = {
        file_id
        for stored in open_batches()
        for file_id in (stored.output_file_id, stored.error_file_id)
    }
    return all_file_ids() | promised


def new_file_id() -> str:
    """Nobody can guess it."""
    return f"{_PREFIX}{secrets.token_hex(16)}"


def _rename(part: Path, target: Path) -> int:
    if part.exists():
        part.rename(target)
        sync_directory(target.parent)
    return target.stat().st_size


def _disk_full(error: OSError) -> InsufficientStorageError:
    return InsufficientStorageError(
        f"The file could not be written: {error.strerror}.",
        hint="Ask the owner of this server to make room.",
    )
