"""Where the server is: found, named, and tried without importing an HTTP library."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tui.client.api import UnreachableError

START_HINT = "Start it with `appliance serve`, or see `systemctl status vllm-appliance`."
_SOCKET_NAME = "admin.sock"
_SYSTEM_SOCKET = "/run/vllm-appliance/admin.sock"


@dataclass(frozen=True)
class Target:
    """A unix socket, or an address."""

    socket: str | None = None
    url: str | None = None

    @property
    def base_url(self) -> str:
        """What request paths are appended to."""
        return self.url.rstrip("/") if self.url else "http://appliance"

    def __str__(self) -> str:
        return self.url or self.socket or ""


def find_socket(environ: Mapping[str, str]) -> str:
    """The management socket of this user or of the system, the first that exists."""
    candidates = [_SYSTEM_SOCKET]
    if home := environ.get("APPLIANCE_HOME"):
        candidates.insert(0, str(Path(home).expanduser().absolute() / "run" / _SOCKET_NAME))
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        candidates.insert(0, str(Path(runtime) / "vllm-appliance" / _SOCKET_NAME))
    return next((path for path in candidates if Path(path).exists()), candidates[0])


def require_server(target: Target, timeout_s: float = 3.0) -> None:
    """Raise UnreachableError when nothing listens at `target`."""
    try:
        if target.socket is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(timeout_s)
                probe.connect(target.socket)
            return
        parts = urlsplit(target.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout_s):
            return
    except (OSError, ValueError) as error:
        raise UnreachableError(f"no server at {target}: {_why(error)}", _hint(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)


def _hint(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "Run it as the server's user, with sudo, or as a member of the server's group."
    return START_HINT
