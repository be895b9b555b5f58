"""A new input file of the lines of a batch that have an error instead of an answer."""

import asyncio
import codecs
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import msgspec

from appliance.batch.files import FileStore
from appliance.batch.lines import is_blank, request_of
from appliance.errors import ConflictError, NotFoundError
from appliance.protocol.batches import Batch, BatchStatus
from appliance.protocol.files import File

_PIECE_BYTES = 256 * 1024


class _Failed(msgspec.Struct):
    custom_id: str


_decode_failed = msgspec.json.Decoder(_Failed).decode


def check_retry(batch: Batch) -> str:
    """Its error file. Raises ConflictError where no line can be tried again."""
    if not batch.status.is_final:
        raise ConflictError(
            f"The batch is not over: its status is '{batch.status.value}'.",
            hint="Lines that can succeed are tried again while it runs.",
        )
    if batch.status is BatchStatus.FAILED:
        raise ConflictError(
            "The batch failed for its file.", hint="Mend the file, and submit it again."
        )
    if batch.error_file_id is None:
        raise ConflictError("Every line of the batch was answered.")
    return batch.error_file_id


def metadata_of_retry(batch: Batch, most_pairs: int) -> dict[str, str] | None:
    """Its own, and what it is a retry of where there is room for that."""
    metadata = {**(batch.metadata or {}), "retry_of": batch.id}
    return metadata if len(metadata) <= most_pairs else batch.metadata


def ids_of(lines: Iterable[bytes]) -> set[str]:
    """The custom_ids of an error file. Raises MsgspecError."""
    return {_decode_failed(line).custom_id for line in lines}


def requests_with(lines: Iterable[bytes], wanted: set[str]) -> Iterator[bytes]:
    """The lines of an input file with these ids, each with its end. Raises ValueError."""
    for line in lines:
        line = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")
        if not is_blank(line) and request_of(line)[0] in wanted:
            yield line + b"\n"


async def copy_failed(files: FileStore, batch: Batch) -> File:
    """The new input file.

    Raises ConflictError, NotFoundError where a file is gone, and InsufficientStorageError.
    """
    errors = files.path(check_retry(batch))
    requests = files.path((await files.find(batch.input_file_id)).id)
    with ExitStack() as opened:

        def begin() -> tuple[set[str], Iterator[bytes]]:
            with errors.open("rb") as lines:
                wanted = ids_of(lines)
            return wanted, requests_with(opened.enter_context(requests.open("rb")), wanted)

        try:
            wanted, lines = await asyncio.to_thread(begin)
        except FileNotFoundError as error:
            raise NotFoundError("The content of a file of the batch is gone.") from error
        found = 0
        async with await files.upload(None) as upload:
            while piece := await asyncio.to_thread(_piece, lines):
                found += len(piece)
                await upload.write(b"".join(piece))
            if found != len(wanted):
                raise ConflictError("The input file has not all lines of the batch.")
            await upload.close()
            return await files.keep(
                upload.part,
                filename=f"{batch.id}_retry.jsonl",
                purpose="batch",
                expires_after_s=None,
            )


def _piece(lines: Iterator[bytes]) -> list[bytes]:
    """The next lines, up to some size; none at the end. Blocks."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            break
    return piece
