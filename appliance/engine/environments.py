"""Engine environments on disk: one directory with a vLLM build each, and which one is in use.

Only a complete environment has a manifest (`environment.json`, written last), so what an
interrupted installation left behind is never listed.
"""

import contextlib
import hashlib
import os
import re
import shutil
from datetime import datetime
from pathlib import Path

import msgspec

from appliance.errors import EngineEnvironmentError
from appliance.protocol.system import EngineEnvironment, WarmOutcome, WarmStart

MANIFEST = "environment.json"
_IN_USE_FILE = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PRELOAD = Path(__file__).with_name("preload")


class EnvironmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an environment."""

    name: str
    platform: str
    """`cpu` or `cuda`."""
    vllm_version: str
    torch_version: str
    python_version: str
    launch: list[str]
    """Start of the command line that runs its OpenAI server."""
    flags: list[str]
    """Command line options that the build accepts, with dashes."""
    size_bytes: int
    created_at: datetime
    has_sleep_mode: bool
    warm_start: WarmStart | None = None
    """The last check of warm starts."""

    @property
    def directory(self) -> Path:
        """The virtual environment."""
        return Path(self.launch[0]).parent.parent

    def has_flag(self, flag: str) -> bool:
        """Whether the build accepts this option."""
        return flag in self.flags


def check_name(name: str) -> str:
    """The name itself if it can name an environment; raises EngineEnvironmentError."""
    if _NAME.fullmatch(name) is None or name == _IN_USE_FILE:
        raise EngineEnvironmentError(
            f"{name!r} cannot name an engine environment.",
            hint="Use small letters, digits, '.', '_' and '-', for example cpu-0.32.0.",
        )
    return name


def packages_stamp(directory: Path) -> str:
    """Another text after packages were installed, changed or removed (blocks for some ms)."""
    files = [directory / "bin" / "python"]
    files += sorted(directory.glob("lib/python3*/site-packages/*.dist-info/RECORD"))
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            line = f"{file.parent.name} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest()


def may_start_warm(record: EnvironmentRecord, stamp: str) -> bool:
    """Whether engines may be forked: the answers were the same, with these very packages."""
    check = record.warm_start
    return check is not None and check.outcome is WarmOutcome.SAME and check.packages == stamp


def preload_modules(record: EnvironmentRecord) -> list[str] | None:
    """What a launcher of this build imports; None: there is no list for it."""
    file = _PRELOAD / f"vllm-{record.vllm_version}-{record.platform}.txt"
    is_module = record.launch[1:2] == ["-m"]
    return file.read_text().split() if is_module and file.exists() else None


class EnvironmentStore:
    """The engine environments below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """Where the environment of that name is, or would be."""
        return self.root / check_name(name)

    def records(self) -> list[EnvironmentRecord]:
        """All complete environments by name; unreadable ones are left out."""
        found = (_read_manifest(path) for path in sorted(self.root.glob(f"*/{MANIFEST}")))
        return [record for record in found if record is not None]

    def unfinished(self) -> list[str]:
        """Names of directories that hold no complete environment."""
        complete = {record.name for record in self.records()}
        if not self.root.is_dir():
            return []
        return sorted(
            path.name
            for path in self.root.iterdir()
            if path.is_dir() and path.name not in complete and _NAME.fullmatch(path.name)
        )

    def get(self, name: str | None = None) -> EnvironmentRecord:
        """The environment of that name, or the one in use; raises EngineEnvironmentError."""
        wanted = self.in_use() if name is None else check_name(name)
        if wanted is None:
            raise EngineEnvironmentError(
                "No engine environment is installed, so there is no vLLM to run models with.",
                hint="Install one: appliance engine install",
            )
        record = _read_manifest(self.directory(wanted) / MANIFEST)
        if record is None:
            raise self._missing(wanted)
        return record

    def python(self, name: str | None = None) -> Path:
        """The Python of an environment, to run scripts that need its packages."""
        return Path(self.get(name).launch[0]).with_name("python")

    def in_use(self) -> str | None:
        """Name of the environment for models that name none; None: nothing is installed."""
        try:
            chosen = (self.root / _IN_USE_FILE).read_text().strip()
        except FileNotFoundError:
            chosen = ""
        if _NAME.fullmatch(chosen):
            return chosen
        oldest = min(self.records(), key=lambda record: record.created_at, default=None)
        return None if oldest is None else oldest.name

    def use(self, name: str) -> EnvironmentRecord:
        """Choose the environment for models that name none."""
        record = self.get(name)
        _replace_text(self.root / _IN_USE_FILE, f"{record.name}\n")
        return record

    def add(self, record: EnvironmentRecord) -> None:
        """Write the manifest: from now on the environment counts. The first one is in use."""
        self.directory(record.name).mkdir(parents=True, exist_ok=True)
        self._write(record)
        chosen = self.in_use()
        if chosen is None or _read_manifest(self.directory(chosen) / MANIFEST) is None:
            chosen = record.name
        self.use(chosen)

    def note_warm_start(self, name: str, check: WarmStart) -> EnvironmentRecord:
        """Write what a check found into the manifest; raises EngineEnvironmentError."""
        record = msgspec.structs.replace(self.get(name), warm_start=check)
        self._write(record)
        return record

    def remove(self, name: str, *, force: bool = False) -> None:
        """Delete an environment, or what is left of one; raises EngineEnvironmentError."""
        directory = self.directory(name)
        if not directory.is_dir():
            raise self._missing(name)
        others = [record.name for record in self.records() if record.name != name]
        if name == self.in_use() and others and not force:
            raise EngineEnvironmentError(
                f"The engine environment {name} is in use.",
                hint=f"Choose another one first: appliance engine use {others[0]}",
            )
        # Without its manifest it is no longer listed, whatever happens to the rest.
        (directory / MANIFEST).unlink(missing_ok=True)
        if name == self.in_use():
            (self.root / _IN_USE_FILE).unlink(missing_ok=True)
        shutil.rmtree(directory)

    def view(self, record: EnvironmentRecord) -> EngineEnvironment:
        """The environment as the management API shows it (blocks for some ms)."""
        return EngineEnvironment(
            name=record.name,
            platform=record.platform,
            vllm_version=record.vllm_version,
            torch_version=record.torch_version,
            python_version=record.python_version,
            in_use=record.name == self.in_use(),
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            has_unix_socket=record.has_flag("--uds"),
            has_sleep_mode=record.has_sleep_mode,
            has_kv_cache_bytes=record.has_flag("--kv-cache-memory-bytes"),
            flags=record.flags,
            warm_start=_now_valid(record),
        )

    def _write(self, record: EnvironmentRecord) -> None:
        manifest = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
        _replace_text(self.directory(record.name) / MANIFEST, f"{manifest}\n")

    def _missing(self, name: str) -> EngineEnvironmentError:
        there = ", ".join(record.name for record in self.records()) or "none"
        if (self.root / name).is_dir():
            return EngineEnvironmentError(
                f"The engine environment {name} is not complete: its installation was interrupted.",
                hint=f"Go on with it: appliance engine install {name}",
            )
        return EngineEnvironmentError(
            f"There is no engine environment {name}; installed: {there}.",
            hint="Choose one with `appliance engine use`, or add one: appliance engine install",
        )


def _read_manifest(path: Path) -> EnvironmentRecord | None:
    """The record in a manifest; the directory's name is the truth, so that it can be renamed."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=EnvironmentRecord)
    except (OSError, msgspec.MsgspecError):
        return None
    return msgspec.structs.replace(record, name=path.parent.name)


def _now_valid(record: EnvironmentRecord) -> WarmStart | None:
    """The check; stale if packages changed after it."""
    check = record.warm_start
    if check is None or check.packages == packages_stamp(record.directory):
        return check
    return msgspec.structs.replace(
        check, outcome=WarmOutcome.STALE, reason="its packages changed after the check"
    )


def _replace_text(path: Path, text: str) -> None:
    """Write all of it or nothing, also when the power fails."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
