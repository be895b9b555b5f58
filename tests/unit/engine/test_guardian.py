import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from appliance.engine import guardian
from appliance.engine.process import end_session
from tests.support.wait import wait_until

LIMIT_S = 10.0


def stay(file: Path, before: str = "") -> str:
    """A program that writes its pid and stays until a signal ends it."""
    return f"{before}echo $$ > {file}.new; mv {file}.new {file}; while :; do sleep 60; done"


def pair(directory: Path, before: str = "") -> str:
    """A program with a child; both stay."""
    return f"sh -c '{stay(directory / 'inner', before)}' & {stay(directory / 'root', before)}"


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts guardians of shell programs; whatever they leave is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(
        program: str, grace_s: float = 5.0, cgroup: str = "-", temporary: str = "-"
    ) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(Path(guardian.__file__)),
                str(grace_s),
                cgroup,
                temporary,
                "/bin/sh",
                "-c",
                program,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(child)
        return child

    yield start_one
    for child in started:
        child.kill()
        child.wait(LIMIT_S)
        end_session(child.pid)
        for pipe in (child.stdin, child.stderr):
            assert pipe is not None
            pipe.close()


def read_pid(file: Path) -> int:
    return int(wait_until(lambda: file.exists() and file.read_text(), LIMIT_S, f"pid in {file}"))


def is_gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def send(child: subprocess.Popen[bytes], command: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(command)
    child.stdin.flush()


@pytest.mark.parametrize("status", [0, 1, 3, 127])
def test_status_of_the_engine_is_its_own(start: Start, status: int) -> None:
    assert start(f"exit {status}").wait(LIMIT_S) == status


def test_signal_that_ended_the_engine_is_told_as_a_shell_does(start: Start) -> None:
    assert start("kill -9 $$").wait(LIMIT_S) == 128 + signal.SIGKILL


def test_program_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", guardian.__file__, "1", "-", "-", str(tmp_path / "none")],
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 127
    assert b"none cannot be started" in done.stderr


def test_program_whose_server_is_gone_already_is_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", guardian.__file__, "5", "-", "-", "/bin/sleep", "60"],
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGTERM


def test_engine_has_no_input_and_a_group_of_its_own(start: Start, tmp_path: Path) -> None:
    child = start(f"cat > {tmp_path}/input; {stay(tmp_path / 'root')}")
    root = read_pid(tmp_path / "root")
    assert (tmp_path / "input").read_bytes() == b""
    assert os.getpgid(root) == root
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(root) == child.pid


def test_asked_engine_ends_by_itself(start: Start, tmp_path: Path) -> None:
    child = start(f"trap 'exit 7' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.02; done")
    read_pid(tmp_path / "pid")
    send(child, b"t")
    assert child.wait(LIMIT_S) == 7


def test_end_of_input_ends_the_tree(start: Start, tmp_path: Path) -> None:
    child = start(pair(tmp_path))
    pids = [read_pid(tmp_path / name) for name in ("inner", "root")]
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert all(is_gone(pid) for pid in pids)


def test_signal_to_the_guardian_ends_the_tree(start: Start, tmp_path: Path) -> None:
    child = start(stay(tmp_path / "root"))
    root = read_pid(tmp_path / "root")
    child.send_signal(signal.SIGTERM)
    assert child.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert is_gone(root)


def test_kill_waits_for_nobody(start: Start, tmp_path: Path) -> None:
    child = start(pair(tmp_path, 'trap "" TERM; '), grace_s=60.0)
    pids = [read_pid(tmp_path / name) for name in ("inner", "root")]
    send(child, b"k")
    assert child.wait(LIMIT_S) == 128 + signal.SIGKILL
    assert all(is_gone(pid) for pid in pids)


def test_engine_that_ignores_the_request_is_killed_after_the_grace_period(
    start: Start, tmp_path: Path
) -> None:
    child = start(stay(tmp_path / "root", "trap '' TERM; "), grace_s=0.2)
    root = read_pid(tmp_path / "root")
    send(child, b"t")
    assert child.wait(LIMIT_S) == 128 + signal.SIGKILL
    assert is_gone(root)


def test_engine_that_swallows_the_first_request_ends_at_the_second(
    start: Start, tmp_path: Path
) -> None:
    program = (
        f"trap 'echo one > {tmp_path}/first; trap \"exit 5\" TERM' TERM;"
        f" echo $$ > {tmp_path}/pid; while :; do sleep 0.02; done"
    )
    child = start(program, grace_s=60.0)
    read_pid(tmp_path / "pid")
    send(child, b"t")
    assert child.wait(LIMIT_S) == 5
    assert (tmp_path / "first").exists()


def test_process_that_outlives_its_parent_is_ended(start: Start, tmp_path: Path) -> None:
    # The middle one ends at once, so the inner one loses its parent; setsid hides it from groups.
    inner = stay(tmp_path / "inner")
    child = start(
        f"(setsid sh -c '{inner}' &); until [ -s {tmp_path}/inner ]; do sleep 0.02; done; exit 4"
    )
    assert child.wait(LIMIT_S) == 4
    assert is_gone(read_pid(tmp_path / "inner"))


def test_leftover_that_ignores_the_request_is_killed(start: Start, tmp_path: Path) -> None:
    inner = stay(tmp_path / "inner", 'trap "" TERM; ')
    child = start(
        f"(setsid sh -c '{inner}' &); until [ -s {tmp_path}/inner ]; do sleep 0.02; done; exit 4"
    )
    assert child.wait(LIMIT_S) == 4
    assert is_gone(read_pid(tmp_path / "inner"))


def test_killed_engine_takes_its_orphans_along(start: Start, tmp_path: Path) -> None:
    child = start(pair(tmp_path))
    inner, root = (read_pid(tmp_path / name) for name in ("inner", "root"))
    os.kill(root, signal.SIGKILL)
    assert child.wait(LIMIT_S) == 128 + signal.SIGKILL
    assert is_gone(inner)


def test_killed_guardian_takes_the_engine_along(start: Start, tmp_path: Path) -> None:
    child = start(stay(tmp_path / "root"))
    root = read_pid(tmp_path / "root")
    child.kill()
    child.wait(LIMIT_S)
    wait_until(lambda: is_gone(root), LIMIT_S, "engine without its guardian is gone")


HOLDER = """
import os, pathlib, signal, sys
from multiprocessing import resource_tracker, shared_memory
block = shared_memory.SharedMemory(create=True, size=4096)
if sys.argv[2] == "alone":
    os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
pathlib.Path(sys.argv[1] + ".new").write_text(block.name)
os.rename(sys.argv[1] + ".new", sys.argv[1])
signal.pause()
"""


@pytest.mark.parametrize("tracker", ["tracked", "alone"])
def test_shared_memory_of_killed_processes_is_removed(
    start: Start, tmp_path: Path, tracker: str
) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    child = start(f"exec {sys.executable} {tmp_path}/holder.py {tmp_path}/name {tracker}")
    wait_until(lambda: (tmp_path / "name").exists(), LIMIT_S, "shared memory")
    name = (tmp_path / "name").read_text()
    assert Path(f"/dev/shm/{name}").exists()
    send(child, b"k")
    child.wait(LIMIT_S)
    assert not Path(f"/dev/shm/{name}").exists()


def test_shared_memory_that_somebody_else_uses_stays(start: Start, tmp_path: Path) -> None:
    ours = shared_memory.SharedMemory(create=True, size=4096)
    try:
        attach = (
            "import sys, pathlib, signal; from multiprocessing import shared_memory;"
            f"block = shared_memory.SharedMemory({ours.name!r});"
            f"pathlib.Path({str(tmp_path / 'name')!r}).write_text('x'); signal.pause()"
        )
        child = start(f'exec {sys.executable} -c "{attach}"')
        wait_until(lambda: (tmp_path / "name").exists(), LIMIT_S, "attached")
        assert f"/dev/shm/{ours.name}" in guardian.shared_memory([os.getpid()])
        guardian.remove_shared_memory({f"/dev/shm/{ours.name}"})
        assert Path(f"/dev/shm/{ours.name}").exists()
        send(child, b"k")
        child.wait(LIMIT_S)
    finally:
        ours.close()
        with contextlib.suppress(FileNotFoundError):
            ours.unlink()


def test_temporary_files_go_with_the_tree(start: Start, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "file").write_text("x")
    assert start("exit 0", temporary=str(own)).wait(LIMIT_S) == 0
    assert not own.exists()


FAILING = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("guardian", sys.argv[1])
guardian = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guardian)
made = guardian.Guardian(1.0, lambda: guardian.become(["/bin/sleep", "60"]))
made._reap = lambda: 1 / 0
made.run()
"""


def test_a_guardian_that_fails_says_so_by_a_signal() -> None:
    # The server takes an exit status for the engine's own, with nothing left to clean up.
    done = subprocess.run(
        [sys.executable, "-c", FAILING, guardian.__file__],
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert b"ZeroDivisionError" in done.stderr


def test_engine_dumps_no_core_and_is_the_first_to_go_when_memory_is_short(
    start: Start, tmp_path: Path
) -> None:
    child = start(
        f"(ulimit -S -c; cat /proc/self/oom_score_adj; ulimit -S -n; ulimit -H -n) > {tmp_path}/all"
    )
    assert child.wait(LIMIT_S) == 0
    core, score, files, most = (tmp_path / "all").read_text().split()
    assert core == "0"
    assert int(score) >= 500
    assert files == most


def test_guardian_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guardian;"
        " print([name for name in sys.modules if name.startswith('appliance')])"
    )
    directory = str(Path(guardian.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, directory],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_descendants_are_found_at_any_depth(start: Start, tmp_path: Path) -> None:
    child = start(pair(tmp_path))
    pids = {read_pid(tmp_path / name) for name in ("inner", "root")}
    found = set(guardian.descendants(child.pid))
    assert pids <= found
    assert child.pid not in found
    assert os.getpid() not in found
