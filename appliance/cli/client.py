"""The way from the command line to a server: its management socket, or an address and a key."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx
import msgspec

from appliance.config.paths import find_paths
from appliance.errors import ApplianceError
from appliance.protocol.files import File

T = TypeVar("T")

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# The server answers once all of a file is on its disk.
_UPLOAD_TIMEOUT = httpx.Timeout(300.0, connect=5.0)


class _Refusal(msgspec.Struct):
    message: str
    hint: str = ""


class _RefusalBody(msgspec.Struct):
    """What the error bodies of `/v1` (where `code` may be null) and `/admin/v1` share."""

    error: _Refusal


class ServerError(ApplianceError):
    """The server cannot be reached, or said no."""

    code = "server_error"


class UnreachableError(ServerError):
    """No answer; it may come back."""


class ServerClient:
    """Typed calls; every failure is a ServerError with words for a person."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        url = url or os.environ.get("APPLIANCE_URL")
        key = key or os.environ.get("APPLIANCE_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._socket: Path | None = None
        if url:
            url = url.rstrip("/").removesuffix("/v1")
            self._where = url
            self._http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT)
        else:
            self._socket = find_paths().admin_socket
            self._where = str(self._socket)
            self._http = httpx.Client(
                base_url="http://appliance",
                transport=httpx.HTTPTransport(uds=str(self._socket)),
                timeout=_TIMEOUT,
            )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, result: type[T], **query: Any) -> T:
        """GET and decode."""
        return self._decode(self._send("GET", path, params=query), result)

    def post(
        self,
        path: str,
        result: type[T],
        body: msgspec.Struct | None = None,
        *,
        is_slow: bool = False,
    ) -> T:
        """POST and decode; slow is what writes a large file before it answers."""
        content = b"" if body is None else msgspec.json.encode(body)
        timeout = _UPLOAD_TIMEOUT if is_slow else _TIMEOUT
        return self._decode(self._send("POST", path, content=content, timeout=timeout), result)

    def patch(self, path: str, result: type[T], body: msgspec.Struct) -> T:
        """PATCH and decode."""
        return self._decode(self._send("PATCH", path, content=msgspec.json.encode(body)), result)

    def delete(self, path: str) -> None:
        """DELETE."""
        self._send("DELETE", path)

    def upload(self, file: BinaryIO, name: str) -> File:
        """Upload the input of a batch, a piece at a time."""
        response = self._send(
            "POST",
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": (name, file)},
            timeout=_UPLOAD_TIMEOUT,
        )
        return self._decode(response, File)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The content of a file, a piece at a time."""
        try:
            with self._http.stream("GET", f"/v1/files/{file_id}/content") as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refused(response)
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def events(self, path: str, *, body: Any = None, **query: Any) -> Generator[bytes, None, None]:
        """The `data:` of a server-sent event stream; POST if there is a body."""
        method = "GET" if body is None else "POST"
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            with self._http.stream(
                method,
                path,
                params=query,
                content=content,
                headers=headers,
                timeout=httpx.Timeout(None, connect=5.0),
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refused(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield line[6:].encode()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _refused(response)
        return response

    def _unreachable(self, error: httpx.HTTPError) -> UnreachableError:
        if self._socket is not None and not self._socket.exists():
            return UnreachableError(
                f"No server runs here ({self._where} does not exist).",
                hint="Start it with `appliance serve`, or `systemctl start vllm-appliance`;"
                " after scripts/quickstart set APPLIANCE_HOME to its home.",
            )
        if isinstance(error, httpx.ConnectError) and "Permission" in str(error):
            return UnreachableError(
                f"You may not open {self._where}.",
                hint="Join the group that owns it, or use --url with an admin key.",
            )
        return UnreachableError(
            f"The server at {self._where} does not answer: {error or type(error).__name__}.",
            hint="`systemctl status vllm-appliance`, or look at the terminal that runs it.",
        )

    @staticmethod
    def _decode(response: httpx.Response, result: type[T]) -> T:
        try:
            return msgspec.json.decode(response.content, type=result)
        except msgspec.MsgspecError as error:
            raise ServerError(
                f"The server's answer cannot be read: {error}.",
                hint="Client and server should be of the same version.",
            ) from error


def _refused(response: httpx.Response) -> ServerError:
    try:
        detail = msgspec.json.decode(response.content, type=_RefusalBody).error
    except msgspec.MsgspecError:
        return ServerError(f"The server answered {response.status_code}.")
    return ServerError(detail.message, hint=detail.hint)
