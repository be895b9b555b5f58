"""Files of requests before they are uploaded: checked, asked of another model, or a part of them.

All of it streams; in memory is a few bytes for each line.
"""

import codecs
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from appliance.batch.index import Limits, LineIndex, index_file
from appliance.batch.lines import ENDPOINTS
from appliance.config.load import load_settings
from appliance.config.paths import find_paths
from appliance.config.settings import BatchSettings
from appliance.errors import ApplianceError, ConfigError
from appliance.protocol.batches import BatchError
from appliance.protocol.models import Task

_USUAL_ENDPOINT = "/v1/chat/completions"
_LONGEST_FIRST_LINE = 16 * 1024**2
_UNLIMITED = 2**31


class InvalidFileError(ApplianceError):
    """A file of requests in which something is wrong."""

    code = "invalid_file"

    def __init__(self, message: str, errors: list[BatchError]) -> None:
        super().__init__(message)
        self.errors = errors


class _Url(msgspec.Struct):
    url: str


_decode_url = msgspec.json.Decoder(_Url).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def limits_of(url: str | None, environ: Mapping[str, str]) -> Limits:
    """Those of the server on this machine; one elsewhere says itself what is too much."""
    if url or environ.get("APPLIANCE_URL"):
        return Limits(lines=_UNLIMITED, line_bytes=_UNLIMITED)
    try:
        settings = load_settings(find_paths(environ).config_file, environ=environ).batches
    except (ConfigError, OSError):
        settings = BatchSettings()
    return Limits(
        lines=settings.max_lines,
        line_bytes=settings.max_line_bytes,
        single_model=settings.single_model,
    )


def endpoint_of(file: Path) -> str:
    """The url of the first line, if it is one that batches have. Raises OSError."""
    with file.open("rb") as lines:
        for line in iter(lambda: lines.readline(_LONGEST_FIRST_LINE), b""):
            if not line.strip():
                continue
            try:
                url = _decode_url(line.removeprefix(codecs.BOM_UTF8)).url
            except (msgspec.MsgspecError, UnicodeDecodeError):
                break
            return url if url in ENDPOINTS else _USUAL_ENDPOINT
    return _USUAL_ENDPOINT


def checked(
    file: Path, endpoint: str, task_of: Callable[[str], Task | None], limits: Limits
) -> LineIndex:
    """Where its lines are. Raises InvalidFileError and OSError."""
    found = index_file(file, endpoint, task_of, limits)
    if isinstance(found, list):
        raise InvalidFileError(f"{file.name} is no sound input for {endpoint}.", found)
    return found


def any_model(endpoint: str) -> Callable[[str], Task | None]:
    """Where nobody can be asked, every name may be that of a model."""
    task = next(iter(ENDPOINTS[endpoint]))
    return lambda _: task


def with_model(source: Path, target: Path, model: str) -> None:
    """Copy it with each body's `model` replaced; the rest stays as it is. Raises OSError."""
    name = msgspec.Raw(msgspec.json.encode(model))
    with source.open("rb") as lines, target.open("wb") as copy:
        for number, line in enumerate(lines):
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            copy.write(_asking(line, name))


def _asking(line: bytes, model: msgspec.Raw) -> bytes:
    try:
        wanted = _decode_object(line)
        body = _decode_object(wanted["body"])
    except (msgspec.MsgspecError, KeyError):
        # What is wrong with it is said with its number when the copy is checked.
        return line
    body["model"] = model
    wanted["body"] = msgspec.Raw(msgspec.json.encode(body))
    return msgspec.json.encode(wanted) + b"\n"
