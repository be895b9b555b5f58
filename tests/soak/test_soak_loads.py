"""Hundreds of loads and unloads of a real engine: nothing grows."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from appliance.engine.proctree import all_processes, process_info
from tests.engine.conftest import start_server
from tests.support.memory import anonymous_bytes
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

CYCLES = 200
# The history of events is full after about 70, of which each needs fifteen.
FIRST = 80
# The history of events fills; after that it is flat, which thousands of loads of stubs show.
MOST_GROWN = 3 * 1024**2


@dataclass(frozen=True)
class Account:
    """What one process holds."""

    memory_bytes: int
    descriptors: int
    threads: int
    zombies: int

    @classmethod
    def of(cls, pid: int) -> "Account":
        others = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
        infos = [process_info(other) for other in others]
        return cls(
            memory_bytes=anonymous_bytes(pid),
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
            zombies=sum(info is not None and info.ppid == pid and info.is_zombie for info in infos),
        )


def files_below(directory: Path) -> set[str]:
    return {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}


def cycle(server: ServerProcess) -> None:
    """Load by a request, answer, unload."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LOAD_S)
    assert answer.status_code == 200, answer.text
    server.admin("POST", "/models/tiny/unload")
    wait_until(lambda: server.model("tiny")["state"] == "stopped", 60)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a short name: vLLM makes sockets in it."""
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        yield Path(name)


def test_nothing_grows(tmp_path: Path, temporary: Path, prepared: Path) -> None:
    server = start_server(
        tmp_path / "home",
        prepared,
        '[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n',
        env={"TMPDIR": str(temporary)},
    )
    try:
        server.add_model("tiny", prepared / "models/tiny")
        for _ in range(FIRST):
            cycle(server)
        assert server.process is not None
        pids = {"server": server.process.pid}
        pids["launcher"] = server.state()["server"]["launchers"][0]["pid"]
        before = {name: Account.of(pid) for name, pid in pids.items()}
        shared = set(Path("/dev/shm").iterdir())
        files = files_below(server.home)
        for number in range(FIRST, CYCLES):
            cycle(server)
            if number % 20 == 0:
                print(number, {name: Account.of(pid) for name, pid in pids.items()})
        after = {name: Account.of(pid) for name, pid in pids.items()}
        print(before, after)
        for name in pids:
            grown = after[name].memory_bytes - before[name].memory_bytes
            assert grown < MOST_GROWN, (name, before[name], after[name])
            assert after[name].descriptors <= before[name].descriptors + 4, name
            assert after[name].threads <= before[name].threads + 2, name
            assert after[name].zombies == 0, name
        assert set(Path("/dev/shm").iterdir()) <= shared
        assert list(temporary.iterdir()) == []
        # Logs of engines have other names each time; their number is limited.
        assert len(files_below(server.home)) <= len(files) + 1
        assert not [info for info in all_processes() if info.name.startswith("appliance-guard")]
    finally:
        server.end()
