"""Files of OpenAI's Files API."""

from typing import Literal

from appliance.protocol.base import Wire


class File(Wire, frozen=True, kw_only=True):
    """OpenAI's File object; times are unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(Wire, frozen=True, kw_only=True):
    """Answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(Wire, frozen=True, kw_only=True):
    """One page."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False
