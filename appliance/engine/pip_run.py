"""Runs pip and condenses what it says to a line now and then, also where nobody draws bars."""

import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.errors import EngineEnvironmentError

Report = Callable[[str], None]

_LINE_EVERY_S = 2.0
_SILENCE_S = 15.0
_TICK_S = 1.0
_PACKAGE = re.compile(r"^(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9][\w.-]*)")
_DOWNLOAD = re.compile(r"^\s*(?:Downloading|Using cached) (\S+?)-\d\S* \((.+)\)")


class PipProgress:
    """Turns pip's lines, and what has appeared on disk, into short progress lines (pure)."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._seen: set[str] = set()
        self._to_install: list[str] = []
        self.errors: list[str] = []

    def feed(self, line: str) -> str | None:
        """What a line of pip's output means for a person."""
        if line.startswith("ERROR:"):
            self.errors.append(line.removeprefix("ERROR:").strip())
        elif match := _PACKAGE.match(line):
            self._seen.add(match[1].lower())
            return f"collecting {self._count(len(self._seen))} {match[1]}"
        elif match := _DOWNLOAD.match(line):
            name = match[1].rsplit("/", 1)[-1]
            return f"fetching {self._count(len(self._seen))} {name} ({match[2]})"
        elif line.startswith("Installing collected packages:"):
            self._to_install = [name.strip() for name in line.split(":", 1)[1].split(",")]
        return None

    def installed(self, count: int) -> str | None:
        """`count` packages have been unpacked since pip began to install."""
        if not self._to_install:
            return None
        index = min(count, len(self._to_install) - 1)
        return f"installing {index + 1}/{len(self._to_install)} {self._to_install[index]}"

    @property
    def is_installing(self) -> bool:
        """Whether pip has everything and unpacks it."""
        return bool(self._to_install)

    def _count(self, number: int) -> str:
        return str(number) if self._total is None else f"{number}/{self._total}"


def run_pip(
    python: Path,
    arguments: Sequence[str],
    *,
    site_packages: Path,
    total: int | None,
    report: Report,
    inherited_fd: int,
) -> None:
    """`python -m pip install ARGUMENTS`; raises EngineEnvironmentError.

    `inherited_fd` stays open in pip: a lock on it lasts as long as pip, even if we are killed.
    """
    command = [str(python), "-m", "pip", "install", "--no-compile", "--no-input", *arguments]
    command += ["--progress-bar", "off", "--disable-pip-version-check"]
    progress = PipProgress(total)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(inherited_fd,),
    ) as process:
        try:
            _follow(process, progress, site_packages, report)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise _failure(progress.errors)


def _follow(
    process: subprocess.Popen[str], progress: PipProgress, site_packages: Path, report: Report
) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    before: int | None = None
    shown, shown_at = "", 0.0
    while True:
        try:
            line = lines.get(timeout=_TICK_S)
        except queue.Empty:
            line = ""
        if line is None:
            return
        text = progress.feed(line)
        if progress.is_installing:
            there = _count_installed(site_packages)
            before = there if before is None else before
            text = progress.installed(there - before)
        now = time.monotonic()
        waited = now - shown_at
        if text and text != shown and waited >= _LINE_EVERY_S:
            shown, shown_at = text, now
            report(text)
        elif shown and waited >= _SILENCE_S:
            shown_at = now
            report(f"{shown} …")


def _read(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip())
    lines.put(None)


def _count_installed(site_packages: Path) -> int:
    return sum(1 for _ in site_packages.glob("*.dist-info/INSTALLER"))


def _failure(errors: list[str]) -> EngineEnvironmentError:
    cause = errors[-1] if errors else "pip failed without saying why"
    text = " ".join(errors)
    hint = "Check the network and run it again: what is downloaded already is kept."
    if "No space left" in text:
        hint = "Make room on the disk and run it again: it goes on where it stopped."
    elif "No matching distribution" in text:
        hint = "No package index that pip knows has it: see `pip config list`."
    return EngineEnvironmentError(f"pip could not install the packages: {cause}", hint=hint)
