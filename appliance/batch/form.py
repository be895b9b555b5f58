"""The form of an upload, as it comes: small fields in memory, the file straight to disk."""

from collections.abc import AsyncIterator

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from appliance.batch.files import Upload
from appliance.errors import InvalidRequestError

_LONGEST_FIELD = 4096
_MOST_PARTS = 20
_LONGEST_BOUNDARY = 200


def boundary_of(content_type: str | None) -> str:
    """Raises InvalidRequestError."""
    kind, options = parse_options_header(content_type or "")
    boundary = str(options.get("boundary", ""))
    if kind != "multipart/form-data" or not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise InvalidRequestError(
            "A file is uploaded as multipart/form-data with a boundary.",
            hint="curl -F purpose=batch -F file=@requests.jsonl does it.",
        )
    return boundary


class Form:
    """Fields and the name of the file, once all has come."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None

    async def read(self, body: AsyncIterator[bytes], boundary: str, upload: Upload) -> None:
        """Raises InvalidRequestError, and what the upload raises."""
        name: str | None = None
        try:
            with PushMultipartParser(boundary, max_segment_count=_MOST_PARTS) as parser:
                async for chunk in body:
                    for event in parser.parse(chunk):
                        if isinstance(event, MultipartSegment):
                            name = self._begin(event)
                        elif isinstance(event, bytes | bytearray):
                            await self._take(name, bytes(event), upload)
        except MultipartError as error:
            raise InvalidRequestError(
                f"The form of the upload cannot be read: {error}.", param="file"
            ) from error

    def _begin(self, part: MultipartSegment) -> str:
        if part.name == "file":
            if self.filename is not None:
                raise InvalidRequestError("One file at a time is uploaded.", param="file")
            self.filename = part.filename or "upload"
        else:
            self.fields[part.name] = ""
        return str(part.name)

    async def _take(self, name: str | None, data: bytes, upload: Upload) -> None:
        if name == "file":
            await upload.write(data)
        elif name is not None:
            value = self.fields[name] + data.decode("utf-8", errors="replace")
            if len(value) > _LONGEST_FIELD:
                raise InvalidRequestError("This field is too long.", param=name[:64])
            self.fields[name] = value
