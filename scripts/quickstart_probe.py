"""What scripts/quickstart asks about ports and servers. Standard library, but for `server`."""

import http.client
import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

_LISTEN = "0A"


def main() -> int:
    """`port N`: who has it; `ready N`: is the server ready; `server`: the one of this home."""
    verb, *arguments = sys.argv[1:]
    if verb == "port":
        return show_owner(int(arguments[0]))
    if verb == "ready":
        return is_ready(int(arguments[0]))
    return show_server()


def show_owner(port: int) -> int:
    """0 if the port is free; else 1, and who has it, as far as that can be seen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            print(_owner(port) or f"a program that only its owner can see ({error.strerror})")
            return 1
    return 0


def _owner(port: int) -> str | None:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else []:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) in inodes:
                process = descriptor.parents[1]
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                return f"process {process.name}: {command.strip()[:100]}"
        except OSError:
            continue
    return None


def is_ready(port: int) -> int:
    """0: ready; 1: not yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return 0
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return 1


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("appliance", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def show_server() -> int:
    """Pid and port of the server of this home; 1 if none runs."""
    from appliance.config.paths import find_paths

    connection = _SocketConnection(find_paths().admin_socket)
    try:
        connection.request("GET", "/admin/v1/state")
        server = json.loads(connection.getresponse().read())["server"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return 1
    print(server["pid"], server["listen"].rsplit(":", 1)[1].strip("/"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
