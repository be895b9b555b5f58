"""`/v1/files` and `/v1/batches`: OpenAI's routes over ASGI."""

import asyncio
import os
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

import msgspec

from appliance.batch.content import first_line, parse_range
from appliance.batch.files import FileStore
from appliance.batch.form import Form, boundary_of
from appliance.batch.lines import is_blank
from appliance.batch.service import BatchService, CreateBatch, expiry_s
from appliance.errors import (
    InsufficientStorageError,
    InvalidRequestError,
    NotFoundError,
    WrongMethodError,
)
from appliance.gateway.asgi import Answer, ClientGoneError, Receive, Scope, header, read_body
from appliance.protocol.files import FileDeleted
from appliance.store.database import StoreError

PREFIXES = ("/v1/files", "/v1/batches")

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_MOST_FILES = 10_000
_MOST_BATCHES = 100
_USUAL_BATCHES = 20
_MOST_BODY_BYTES = 1024 * 1024
_PIECE_BYTES = 256 * 1024
_MOST_DIGITS = 9

_encode = msgspec.json.Encoder().encode


class BatchEndpoints:
    """Answers all paths below the prefixes."""

    def __init__(self, files: FileStore, batches: BatchService) -> None:
        self._files = files
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Raises ApplianceError."""
        try:
            await self._answer(scope, receive, answer)
        except StoreError as error:
            raise InsufficientStorageError(
                f"The server's disk fails: {error}.", hint="Ask the owner of this server."
            ) from error

    async def _answer(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        method, path = scope["method"], scope["path"]
        match path.strip("/").split("/"), method:
            case ["v1", "files"], "POST":
                await self._upload(scope, receive, answer)
            case ["v1", "files"], "GET":
                await self._list_files(scope, answer)
            case ["v1", "files", file_id], "GET":
                await answer.json(200, _encode(await self._files.find(file_id)))
            case ["v1", "files", file_id], "DELETE":
                await self._files.delete(file_id)
                await answer.json(200, _encode(FileDeleted(id=file_id)))
            case ["v1", "files", file_id, "content"], "GET" | "HEAD":
                await self._content(scope, file_id, answer)
            case ["v1", "batches"], "POST":
                wanted = await self._body(scope, receive)
                await answer.json(200, _encode(await self._batches.create(wanted)))
            case ["v1", "batches"], "GET":
                query = _query(scope)
                limit = _limit(query, _USUAL_BATCHES, _MOST_BATCHES)
                page = await self._batches.page(after=query.get("after"), limit=limit)
                await answer.json(200, _encode(page))
            case ["v1", "batches", batch_id], "GET":
                await answer.json(200, _encode(await self._batches.find(batch_id)))
            case ["v1", "batches", batch_id, "cancel"], "POST":
                await answer.json(200, _encode(await self._batches.cancel(batch_id)))
            case _:
                raise _unknown(method, path)

    async def _upload(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        boundary = boundary_of(header(scope, b"content-type"))
        declared = header(scope, b"content-length")
        # The form around the file is small, and counts only what is over.
        size = int(declared) if declared is not None and declared.isdecimal() else None
        if size is not None and size <= self._files.most_bytes + _MOST_BODY_BYTES:
            size = min(size, self._files.most_bytes)
        async with await self._files.upload(size) as upload:
            form = Form()
            await form.read(_chunks(receive), boundary, upload)
            purpose = form.fields.get("purpose")
            if form.filename is None:
                raise _missing("file")
            if not purpose:
                raise _missing("purpose")
            if purpose not in _PURPOSES:
                raise InvalidRequestError(
                    f"Invalid value: '{purpose[:64]}'. Supported values are:"
                    f" {', '.join(_PURPOSES)}.",
                    param="purpose",
                    detail_code="invalid_value",
                )
            life_s = _life_s(form.fields)
            await upload.close()
            if purpose == "batch":
                _check_first(await asyncio.to_thread(first_line, upload.part))
            file = await self._files.keep(
                upload.part, filename=form.filename, purpose=purpose, expires_after_s=life_s
            )
        await answer.json(200, _encode(file))

    async def _list_files(self, scope: Scope, answer: Answer) -> None:
        query = _query(scope)
        order = query.get("order", "desc")
        if order not in {"asc", "desc"}:
            raise InvalidRequestError("order is 'asc' or 'desc'.", param="order")
        page = await self._files.page(
            after=query.get("after"),
            limit=_limit(query, _MOST_FILES, _MOST_FILES),
            newest_first=order == "desc",
            purpose=query.get("purpose"),
        )
        await answer.json(200, _encode(page))

    async def _content(self, scope: Scope, file_id: str, answer: Answer) -> None:
        file = await self._files.find(file_id)
        try:
            descriptor = await asyncio.to_thread(os.open, self._files.path(file_id), os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFoundError(f"The content of {file_id} is gone.", param="id") from error
        try:
            size = os.fstat(descriptor).st_size
            wanted = parse_range(header(scope, b"range"), size)
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"accept-ranges", b"bytes"),
                (b"content-disposition", _disposition(file.filename)),
            ]
            if wanted is None:
                headers += [(b"content-range", b"bytes */%d" % size), (b"content-length", b"0")]
                await answer.start(416, headers)
                await answer.body(b"", more=False)
                return
            start, end = wanted
            headers.append((b"content-length", b"%d" % (end - start)))
            is_part = (start, end) != (0, size)
            if is_part:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
            await answer.start(206 if is_part else 200, headers)
            while start < end and scope["method"] == "GET":
                length = min(_PIECE_BYTES, end - start)
                piece = await asyncio.to_thread(os.pread, descriptor, length, start)
                if not piece:
                    break
                start += len(piece)
                await answer.body(piece)
            await answer.body(b"", more=False)
        finally:
            os.close(descriptor)

    async def _body(self, scope: Scope, receive: Receive) -> CreateBatch:
        body = await read_body(scope, receive, _MOST_BODY_BYTES)
        try:
            return msgspec.json.decode(body, type=CreateBatch)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"We could not parse the JSON body of your request: {error}.",
                hint="The body must be a JSON object.",
            ) from error


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if body := message.get("body", b""):
            yield body
        if not message.get("more_body", False):
            return


def _query(scope: Scope) -> dict[str, str]:
    given = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return {name: values[-1] for name, values in given.items()}


def _limit(query: dict[str, str], usual: int, most: int) -> int:
    text = query.get("limit")
    if text is None:
        return usual
    if not (text.isdecimal() and len(text) <= _MOST_DIGITS and 1 <= int(text) <= most):
        raise InvalidRequestError(
            f"Invalid value for 'limit': it must be a number from 1 to {most}.",
            param="limit",
            detail_code="invalid_value",
        )
    return int(text)


def _life_s(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    return expiry_s(anchor, seconds, "expires_after")


def _check_first(line: bytes) -> None:
    """What is no JSONL is refused at once; later lines are judged when a batch reads them."""
    try:
        is_object = not is_blank(line) and isinstance(msgspec.json.decode(line), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidRequestError(
            "Invalid file format for Batch API. Must be .jsonl",
            hint="Each line is a JSON object with custom_id, method, url and body.",
            param="file",
        )


def _disposition(filename: str) -> bytes:
    """A name for browsers; only harmless letters of it."""
    safe = "".join(
        letter if (letter.isascii() and letter.isalnum()) or letter in "._-" else "_"
        for letter in filename
    )
    return f'attachment; filename="{safe}"'.encode()


def _missing(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{name}'.",
        param=name,
        detail_code="missing_required_parameter",
    )


def _unknown(method: str, path: str) -> NotFoundError | WrongMethodError:
    parts = path.strip("/").split("/")
    is_known = len(parts) <= 3 or (len(parts) == 4 and parts[3] in {"content", "cancel"})
    if is_known:
        return WrongMethodError(f"Not allowed to {method} on {path}.")
    return NotFoundError(f"Unknown request URL: {method} {path}.")
