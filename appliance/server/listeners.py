"""Sockets: TCP for clients, a unix socket for management; one server at a time on a state."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from appliance.config.settings import ServerSettings
from appliance.errors import ConfigError

_BACKLOG = 2048
_GROUP_MAY_MANAGE = 0o660


def lock_state(file: Path) -> int:
    """Hold the lock of this state directory until the process ends. Raises ConfigError.

    The file tells the pid of the holder, for scripts and for people.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise ConfigError(
            f"Another server already runs on this state directory (pid {holder or 'unknown'}).",
            hint="Stop it first, or use another one with APPLIANCE_HOME.",
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def listen_tcp(settings: ServerSettings) -> socket.socket:
    """The address for clients. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {settings.host}:{settings.port}: {os.strerror(error.errno or 0)}.",
            hint="Choose another port with --port or server.port,"
            " or find out who holds it with `ss -ltnp`.",
        ) from error
    listener.listen(_BACKLOG)
    listener.set_inheritable(False)
    return listener


def listen_unix(path: Path) -> socket.socket:
    """The management socket, for its owner and group alone."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    path.chmod(_GROUP_MAY_MANAGE)
    listener.listen(_BACKLOG)
    return listener
