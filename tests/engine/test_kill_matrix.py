"""Every process of a real engine, its server and its launcher, killed at every moment.

Within ten seconds nothing of the victim's engine is left, and the desired state is being restored;
each client has an answer or a proper error. The model is split over two ranks, so that the engine
has all kinds of processes.
"""

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from appliance.engine.proctree import all_processes, process_info, session_processes
from tests.engine.conftest import start_server
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2, reason="tensor parallelism on the CPU needs two cores"
    ),
]

GIB = 1024**3
CLEAN_S = 10.0
CONFIG = (
    '[[devices.simulated]]\nmemory = "3GiB"\n[[devices.simulated]]\nmemory = "3GiB"\n'
    '[engines]\nretry_first = "0.2s"\nmax_attempts = 1000\nfrozen_timeout = "3s"\n'
    '[server]\ndrain_timeout = "2s"\n'
)
NAMES = {"api": "VLLM::APIServer", "core": "VLLM::EngineCor", "worker": "VLLM::Worker"}
VICTIMS = ["server", "launcher", *NAMES]
EARLIER: set[str] = set()
"""Shared memory that nobody used before these tests."""
MOMENTS = ["starting", "ready", "streaming", "stopping"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Iterator[ServerProcess]:
    """One server for the whole matrix; its model is always on."""
    EARLIER.update(orphaned_shared_memory())
    with tempfile.TemporaryDirectory(prefix="va-") as temporary:
        home = tmp_path_factory.mktemp("matrix")
        server = start_server(home, prepared, CONFIG, {"TMPDIR": temporary})
        server.add_model(
            "tiny", prepared / "models/tiny", tp_size=2, memory_bytes=int(1.8 * GIB), always_on=True
        )
        yield server
        server.end()
        assert list(Path(temporary).iterdir()) == []
    assert not orphaned_shared_memory() - EARLIER


class Client(threading.Thread):
    """A person's request; `answer` is what came of it."""

    def __init__(self, server: ServerProcess, **fields: object) -> None:
        super().__init__(daemon=True)
        self.body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
        self.url = f"{server.url}/v1/chat/completions"
        self.has_begun = threading.Event()
        self.answer = ""
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self.url, json=self.body, timeout=LOAD_S) as response:
                for line in response.iter_lines():
                    if '"delta"' in line:
                        self.has_begun.set()
                    self.answer += line + "\n"
        except httpx.HTTPError as error:
            self.answer += f"connection: {type(error).__name__}"

    def is_served(self, *, server_died: bool) -> bool:
        """Whether it got an answer or a proper error."""
        if "[DONE]" in self.answer or '"finish_reason":"length"' in self.answer:
            return True
        if server_died:
            return "connection: " in self.answer
        last = [line for line in self.answer.splitlines() if line][-1].removeprefix("data: ")
        error = json.loads(last)["error"]
        return bool(error["message"] and error["type"])


def ensure_ready(server: ServerProcess) -> None:
    def is_ready() -> bool:
        return bool(server.model("tiny")["state"] == "ready")

    if not is_ready():
        server.admin("POST", "/models/tiny/load")
    wait_until(is_ready, LOAD_S, "tiny ready")
    wait_until(lambda: launchers(server), LOAD_S, "launcher")


def launchers(server: ServerProcess) -> list[int]:
    assert server.process is not None
    return [
        info.pid
        for info in all_processes()
        if info.ppid == server.process.pid and info.name.startswith("appliance-launc")
    ]


def tree_of(server: ServerProcess) -> set[int]:
    return {info.pid for session in server.engine_pids() for info in session_processes(session)}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (info := process_info(pid)) is not None and not info.is_zombie}


def victims(server: ServerProcess, victim: str) -> list[int]:
    if victim == "server":
        assert server.process is not None
        return [server.process.pid]
    if victim == "launcher":
        return launchers(server)
    return [
        info.pid
        for session in server.engine_pids()
        for info in session_processes(session)
        if info.name.startswith(NAMES[victim])
    ]


def leftovers(server: ServerProcess) -> set[str]:
    """Records and sockets of engines that the server does not know, and shared memory of nobody."""
    known = {engine["id"] for engine in server.state()["engines"]}
    files = [*server.paths.engine_records.iterdir(), *Path(server.env["TMPDIR"]).iterdir()]
    unknown = {file.name for file in files if file.stem.removeprefix("va-") not in known}
    return unknown | orphaned_shared_memory() - EARLIER


def orphaned_shared_memory() -> set[str]:
    with os.scandir("/dev/shm") as entries:
        kinds = ("psm_", "sem.mp-", "vllm_")
        files = {entry.inode(): entry.name for entry in entries if entry.name.startswith(kinds)}
    for info in all_processes():
        if files:
            try:
                maps = Path(f"/proc/{info.pid}/maps").read_text().splitlines()
            except OSError:
                continue
            for line in maps:
                if "/dev/shm/" in line:
                    files.pop(int(line.split()[4]), None)
    return set(files.values())


def come_to(server: ServerProcess, moment: str) -> Client | None:
    """Bring the engine to this moment, with a client where one would wait."""
    if moment == "starting":
        server.admin("POST", "/models/tiny/unload")
        wait_until(lambda: server.model("tiny")["state"] == "stopped", 30)
        client = Client(server, max_tokens=4)
        wait_until(lambda: server.engine_pids(), 30, "an engine")
        return client
    if moment == "streaming":
        client = Client(server, stream=True, max_tokens=1900, ignore_eos=True)
        assert client.has_begun.wait(60)
        return client
    return None


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_leaves_nothing_and_service_goes_on(
    server: ServerProcess, victim: str, moment: str
) -> None:
    ensure_ready(server)
    client = come_to(server, moment)
    targets = wait_until(lambda: victims(server, victim), 30, f"{victim} while {moment}")
    doomed = tree_of(server)
    if moment == "stopping":
        server.admin("POST", "/models/tiny/unload")

    for pid in targets:
        # While it stops it may be faster than we are.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    doomed = doomed if victim != "launcher" else set(targets)
    if victim == "server":
        assert server.process is not None
        server.process.wait(10)
        server.kill()
        server.start()

    if victim != "launcher" or moment == "stopping":
        wait_until(lambda: not alive(doomed), CLEAN_S, f"end of {victim}'s engine")
    if moment == "stopping" and victim != "server":
        wait_until(lambda: server.model("tiny")["state"] == "stopped", CLEAN_S)
    else:
        wait_until(
            lambda: server.model("tiny")["state"] in {"starting", "loading", "ready"},
            max(CLEAN_S - (time.monotonic() - killed_at), 1.0),
            "desired state",
        )
    wait_until(lambda: not leftovers(server), CLEAN_S, "nothing left")
    if client is not None:
        client.join(LOAD_S)
        assert client.is_served(server_died=victim == "server"), client.answer[-2000:]
    if moment != "stopping":
        wait_until(lambda: server.model("tiny")["state"] == "ready", LOAD_S, "tiny ready again")
        answer = Client(server, max_tokens=4)
        answer.join(LOAD_S)
        assert '"finish_reason":"length"' in answer.answer, answer.answer[-2000:]
    if victim == "launcher":
        wait_until(lambda: set(launchers(server)) - set(targets), LOAD_S, "a launcher again")


@pytest.mark.parametrize("victim", ["api", "core", "worker"])
def test_a_process_that_is_stopped_under_load_is_found_and_replaced(
    server: ServerProcess, victim: str
) -> None:
    ensure_ready(server)
    client = Client(server, stream=True, max_tokens=1900, ignore_eos=True)
    assert client.has_begun.wait(60)
    doomed = tree_of(server)
    for pid in victims(server, victim):
        os.kill(pid, signal.SIGSTOP)
    client.join(60)
    assert "It hangs" in client.answer
    wait_until(lambda: not alive(doomed), CLEAN_S, "end of the engine")
    wait_until(lambda: server.model("tiny")["state"] == "ready", LOAD_S, "tiny ready again")
    assert not leftovers(server)
