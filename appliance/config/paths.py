"""Where things are: configuration, state, sockets, logs, caches.

Three layouts, chosen in this order: everything below `APPLIANCE_HOME`; the directories that
systemd hands to a unit (`STATE_DIRECTORY` and its sisters); the XDG directories of the user.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ConfigError

_NAME = "vllm-appliance"
# A unix socket's path must fit in 108 bytes with its final zero (Linux, unix(7)).
_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET_NAME = "eng_0123456789abcdef.sock"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The directories and files of one appliance."""

    config_file: Path
    state: Path
    run: Path
    logs: Path
    cache: Path

    @property
    def database(self) -> Path:
        """SQLite file."""
        return self.state / "appliance.db"

    @property
    def engine_environments(self) -> Path:
        """One directory per vLLM build."""
        return self.state / "engines"

    @property
    def models(self) -> Path:
        """Checkpoints that the appliance made itself, such as the starter models."""
        return self.state / "models"

    @property
    def files(self) -> Path:
        """Contents of the Files API."""
        return self.state / "files"

    @property
    def batches(self) -> Path:
        """Results of batches that still run."""
        return self.state / "batches"

    @property
    def admin_socket(self) -> Path:
        """Management socket."""
        return self.run / "admin.sock"

    @property
    def engine_records(self) -> Path:
        """Identity records and sockets of running engines."""
        return self.run / "engines"

    @property
    def engine_logs(self) -> Path:
        """One file per start of an engine."""
        return self.logs / "engines"

    @property
    def lock(self) -> Path:
        """Held while a server runs on this state."""
        return self.run / "server.lock"

    def create(self) -> None:
        """Make all directories; those with sockets and state are for the owner alone."""
        for directory in (self.state, self.logs, self.cache):
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        for directory in (
            self.engine_environments,
            self.models,
            self.engine_logs,
        ):
            directory.mkdir(exist_ok=True, mode=0o750)
        self.run.mkdir(parents=True, exist_ok=True, mode=0o750)
        _require_own(self.run)
        self.engine_records.mkdir(exist_ok=True, mode=0o700)


def find_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """The paths of this process; makes nothing. Raises ConfigError."""
    env = os.environ if environ is None else environ
    if home := env.get("APPLIANCE_HOME"):
        root = Path(home).expanduser().absolute()
        return Paths(
            config_file=_config_file(env, root / "config"),
            state=root / "state",
            run=_short_run_directory(root / "run"),
            logs=root / "logs",
            cache=root / "cache",
        )
    if state := env.get("STATE_DIRECTORY"):
        return Paths(
            config_file=_config_file(
                env, Path(env.get("CONFIGURATION_DIRECTORY", f"/etc/{_NAME}"))
            ),
            state=Path(state),
            run=Path(env.get("RUNTIME_DIRECTORY", f"/run/{_NAME}")),
            logs=Path(env.get("LOGS_DIRECTORY", f"/var/log/{_NAME}")),
            cache=Path(env.get("CACHE_DIRECTORY", f"/var/cache/{_NAME}")),
        )
    user = Path(env.get("HOME", "~")).expanduser()
    state_home = Path(env.get("XDG_STATE_HOME") or user / ".local/state") / _NAME
    runtime = env.get("XDG_RUNTIME_DIR")
    return Paths(
        config_file=_config_file(env, Path(env.get("XDG_CONFIG_HOME") or user / ".config") / _NAME),
        state=state_home,
        run=_short_run_directory(Path(runtime) / _NAME if runtime else state_home / "run"),
        logs=state_home / "logs",
        cache=Path(env.get("XDG_CACHE_HOME") or user / ".cache") / _NAME,
    )


def _config_file(env: Mapping[str, str], directory: Path) -> Path:
    return Path(env.get("APPLIANCE_CONFIG") or directory / "config.toml")


def _short_run_directory(wanted: Path) -> Path:
    """`wanted`, or a directory with a short name where a socket in it could not be bound."""
    longest = wanted / "engines" / _LONGEST_SOCKET_NAME
    if len(os.fsencode(longest)) <= _SOCKET_PATH_MAX:
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}-{digest}"


def _require_own(directory: Path) -> None:
    """Refuse a runtime directory that somebody else could have prepared."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ConfigError(
            f"The runtime directory {directory} belongs to another user.",
            hint="Remove it, or set APPLIANCE_HOME to a directory of your own.",
        )
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"Everybody may write into the runtime directory {directory}.",
            hint=f"chmod o-w {directory}",
        )
