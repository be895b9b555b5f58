"""What clients and the owner can do with batches."""

import asyncio
import secrets
from typing import Any

import msgspec

from appliance.batch import state
from appliance.batch.clock import Clock
from appliance.batch.failures import first_failures
from appliance.batch.files import FileStore, new_file_id
from appliance.batch.lines import ENDPOINTS
from appliance.batch.news import progress_of
from appliance.batch.retry import copy_failed, metadata_of_retry
from appliance.batch.run import BatchRun
from appliance.batch.runner import BatchRunner
from appliance.errors import ApplianceError, ConflictError, InvalidRequestError, NotFoundError
from appliance.protocol.batches import Batch, BatchList, BatchProgress, BatchStatus, LineFailure
from appliance.store.batches import StoredBatch, add_batch, batches_page, find_batch
from appliance.store.database import Database
from appliance.units import parse_duration

_MOST_PAIRS = 16
_LONGEST_KEY = 64
_LONGEST_VALUE = 512
_LEAST_EXPIRY_S = 3600
_MOST_EXPIRY_S = 30 * 86400
_LEAST_WINDOW_S = 3600.0
_MOST_WINDOW_S = 30 * 86400.0
_NEEDED = ("input_file_id", "endpoint", "completion_window")


class CreateBatch(msgspec.Struct):
    """Body of a creation; types are checked by hand, for OpenAI's own words."""

    input_file_id: Any = None
    endpoint: Any = None
    completion_window: Any = None
    metadata: Any = None
    output_expires_after: Any = None


class BatchService:
    """Create, look at, cancel, pause."""

    def __init__(
        self, database: Database, files: FileStore, runner: BatchRunner, clock: Clock
    ) -> None:
        self._database = database
        self._files = files
        self._runner = runner
        self._clock = clock

    async def create(self, wanted: CreateBatch) -> Batch:
        """Raises InvalidRequestError and NotFoundError."""
        _check(wanted)
        window_s = _window_s(wanted.completion_window)
        # What left-overs of the last server there are is known then.
        await self._runner.started()
        file = await self._files.find(wanted.input_file_id)
        if file.purpose != "batch":
            raise InvalidRequestError(
                f"The file {file.id} has the purpose {file.purpose!r}; batches need 'batch'.",
                param="input_file_id",
            )
        now = self._clock.now()
        stored = StoredBatch(
            batch=Batch(
                id=f"batch_{secrets.token_hex(16)}",
                endpoint=wanted.endpoint,
                input_file_id=file.id,
                completion_window=wanted.completion_window,
                status=BatchStatus.VALIDATING,
                created_at=now,
                expires_at=now + int(window_s),
                metadata=wanted.metadata,
            ),
            output_file_id=new_file_id(),
            error_file_id=new_file_id(),
            output_expires_after_s=_expiry_s(wanted.output_expires_after),
        )
        if not await self._database.write(lambda: add_batch(stored)):
            raise NotFoundError(f"No such File object: {file.id}", param="input_file_id")
        return self._runner.add(stored).batch

    async def find(self, batch_id: str) -> Batch:
        """Raises NotFoundError."""
        return (await self.progress(batch_id)).batch

    async def progress(self, batch_id: str) -> BatchProgress:
        """What the owner sees. Raises NotFoundError."""
        run = self._runner.runs.get(batch_id)
        if run is not None:
            return run.progress()
        stored = await self._database.read(lambda: find_batch(batch_id))
        if stored is None:
            raise NotFoundError(f"No batch found with id '{batch_id}'.", param="batch_id")
        return progress_of(stored)

    async def page(self, *, after: str | None, limit: int) -> BatchList:
        """Newest first. Raises InvalidRequestError."""
        found = await self.progress_page(after=after, limit=limit + 1)
        shown = [each.batch for each in found[:limit]]
        return BatchList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(found) > limit,
        )

    async def progress_page(self, *, after: str | None, limit: int) -> list[BatchProgress]:
        """Newest first. Raises InvalidRequestError."""
        found = await self._database.read(lambda: batches_page(after=after, limit=limit))
        if found is None:
            raise InvalidRequestError(f"No batch found with id '{after}'.", param="after")
        runs = self._runner.runs
        return [
            run.progress() if (run := runs.get(stored.batch.id)) else progress_of(stored)
            for stored in found
        ]

    async def failures(self, batch_id: str, limit: int) -> list[LineFailure]:
        """The first lines that failed, and why. Raises NotFoundError."""
        run = self._runner.runs.get(batch_id)
        if run is None:
            file_id = (await self.find(batch_id)).error_file_id
            places = [] if file_id is None else [self._files.path(file_id)]
        else:
            # The file moves from one place to the other when the batch ends.
            places = [
                run.directory / "errors.jsonl",
                self._files.path(run.stored.error_file_id),
            ]
        return await asyncio.to_thread(first_failures, batch_id, places, limit)

    async def retry(self, batch_id: str) -> BatchProgress:
        """A new batch of the lines that have no answer.

        Raises NotFoundError, ConflictError where there are none, and InsufficientStorageError.
        """
        batch = await self.find(batch_id)
        file = await copy_failed(self._files, batch)
        try:
            made = await self.create(
                CreateBatch(
                    input_file_id=file.id,
                    endpoint=batch.endpoint,
                    completion_window=batch.completion_window,
                    metadata=metadata_of_retry(batch, _MOST_PAIRS),
                )
            )
        except ApplianceError:
            await self._files.delete(file.id)
            raise
        return await self.progress(made.id)

    async def cancel(self, batch_id: str) -> Batch:
        """Raises NotFoundError and ConflictError."""
        await self._runner.started()
        run = self._runner.runs.get(batch_id)
        if run is None:
            return state.cancelling(await self.find(batch_id), self._clock.now())
        run.batch = state.cancelling(run.batch, self._clock.now())
        run.is_stopping = True
        await self._runner.store(run)
        return run.batch

    async def pause(self, batch_id: str, *, is_paused: bool) -> BatchProgress:
        """Start no further lines, or go on. Raises NotFoundError and ConflictError."""
        await self._runner.started()
        run = self._open_run(batch_id, await self.find(batch_id))
        run.stored = msgspec.structs.replace(run.stored, is_paused=is_paused)
        run.changed.set()
        await self._runner.store(run)
        self._runner.wake()
        return run.progress()

    def _open_run(self, batch_id: str, batch: Batch) -> BatchRun:
        run = self._runner.runs.get(batch_id)
        if run is None:
            raise ConflictError(f"The batch is over: its status is '{batch.status.value}'.")
        return run


def _check(wanted: CreateBatch) -> None:
    for name in _NEEDED:
        value = getattr(wanted, name)
        if value is None:
            raise InvalidRequestError(
                f"Missing required parameter: '{name}'.",
                param=name,
                detail_code="missing_required_parameter",
            )
        if not isinstance(value, str):
            raise _type_error(name, "a string", value)
    if wanted.endpoint not in ENDPOINTS:
        known = ", ".join(f"'{each}'" for each in ENDPOINTS)
        raise InvalidRequestError(
            f"Invalid value: '{wanted.endpoint}'. Supported values are: {known}.",
            param="endpoint",
            detail_code="invalid_value",
        )
    _check_metadata(wanted.metadata)


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise _type_error("metadata", "an object", metadata)
    if len(metadata) > _MOST_PAIRS:
        raise _value_error("metadata", f"it has more than {_MOST_PAIRS} pairs")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _type_error(f"metadata.{key[:_LONGEST_KEY]}", "a string", value)
        if len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE:
            raise _value_error(
                f"metadata.{key[:_LONGEST_KEY]}",
                f"keys have at most {_LONGEST_KEY} characters and values {_LONGEST_VALUE}",
            )


def _window_s(window: str) -> float:
    """OpenAI knows 24h alone; longer and shorter ones are an extension."""
    try:
        seconds = parse_duration(window)
    except ValueError as error:
        raise _value_error("completion_window", f"{window!r} is no duration such as 24h") from error
    if not _LEAST_WINDOW_S <= seconds <= _MOST_WINDOW_S:
        raise _value_error("completion_window", "it must be between 1h and 30d, for example 24h")
    return seconds


def _expiry_s(wanted: Any) -> int | None:
    if wanted is None:
        return None
    name = "output_expires_after"
    if not isinstance(wanted, dict):
        raise _type_error(name, "an object", wanted)
    return expiry_s(wanted.get("anchor"), wanted.get("seconds"), name)


def expiry_s(anchor: Any, seconds: Any, name: str) -> int:
    """Seconds of an expiry after `created_at`. Raises InvalidRequestError."""
    if anchor != "created_at":
        raise _value_error(f"{name}.anchor", "it must be 'created_at'")
    if isinstance(seconds, str) and seconds.isdecimal():
        seconds = int(seconds)
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise _type_error(f"{name}.seconds", "an integer", seconds)
    if not _LEAST_EXPIRY_S <= seconds <= _MOST_EXPIRY_S:
        raise _value_error(
            f"{name}.seconds", f"it must be between {_LEAST_EXPIRY_S} and {_MOST_EXPIRY_S}"
        )
    return seconds


def _type_error(param: str, expected: str, value: Any) -> InvalidRequestError:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    got = kinds.get(type(value), "null" if value is None else "a number")
    return InvalidRequestError(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param=param,
        detail_code="invalid_type",
    )


def _value_error(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid value for '{param}': {why}.", param=param, detail_code="invalid_value"
    )
