"""A small parent for one engine; runs as a program of its own and needs only the standard library.

Why it exists: a SIGKILL of vLLM's API server leaves its engine core and workers behind, and a
SIGKILL of the appliance would leave everything behind. The guardian is a child subreaper
(prctl(2)), so every orphan of the tree becomes its child, and it holds the read end of a pipe
whose write end only the appliance holds, so it learns at once when the appliance is gone. It ends
only when no process of the tree is left, nor anything of theirs in /dev/shm, nor the directory for
their temporary files.

Standard input takes commands: `t` asks the engine to end and kills it after the grace period, `k`
kills at once; end of file means that the appliance is gone and works like `t`. The exit status is
that of the engine's first process, 128 + N where signal N ended it.

CGROUP is the directory of a cgroup (v2) of the engine's own, TEMPORARY that of its temporary
files; `-` where it has none.

Usage: guardian.py GRACE_SECONDS CGROUP TEMPORARY PROGRAM [ARGUMENT ...]
"""

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# vLLM swallows one SIGTERM while it loads; a second one ends it.
_SECOND_TERM_S = 1.0
# What is left when the first process has gone gets this long to end by itself.
_LEFTOVER_S = 1.0
# So long a resource tracker may clean up after the processes that were killed.
_TRACKER_S = 1.0
# Makes the kernel choose an engine when memory is short (proc_pid_oom_score_adj(5)).
_OOM_SCORE = b"500"
# What multiprocessing, vLLM, torch, NCCL and CUDA name their files. Other files there may be a
# person's. vLLM 0.32 never removes those of ranks on the CPU, also when it ends by itself.
_SHARED_MEMORY = ("psm_", "sem.mp-", "vllm_", "torch_", "nccl-", "cuda.shm.")


class Guardian:
    """Runs one engine and leaves nothing of it behind.

    `run_root` becomes the engine's first process: it is called in a forked child and must not
    return.
    """

    def __init__(
        self, grace_s: float, run_root: Callable[[], None], cgroup: str = "-", temporary: str = "-"
    ) -> None:
        self._grace_s = grace_s
        self._cgroup = None if cgroup == "-" else cgroup
        self._temporary = None if temporary == "-" else temporary
        self._shared: set[str] = set()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._wake_read, wake_write = os.pipe()
        for end in (self._wake_read, wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        self._asked_to_end = False
        self._term_again_at: float | None = None
        self._kill_at: float | None = None
        self._killed_at: float | None = None
        self._status: int | None = None
        self._root = 0
        self._inputs: dict[int, Callable[[], None]] = {
            self._wake_read: self._take_wake_ups,
            0: self._take_command,
        }
        self._on_exit: dict[int, Callable[[int], None]] = {}
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._root = self.fork(run_root)

    def add_input(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever there is something to read."""
        self._inputs[descriptor] = handler

    def remove_input(self, descriptor: int) -> None:
        """Read it no more."""
        self._inputs.pop(descriptor, None)

    def fork(self, run: Callable[[], None], on_exit: Callable[[int], None] | None = None) -> int:
        """Run something in a child that dies with the guardian; `on_exit` gets its exit code."""
        guardian = os.getpid()
        child = os.fork()
        if child:
            if on_exit is not None:
                self._on_exit[child] = on_exit
            return child
        try:
            # A group of its own: an engine that signals its group does not hit the guardian.
            os.setpgid(0, self._root)
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guardian:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            if self._cgroup is not None:
                write(f"{self._cgroup}/cgroup.procs", b"0")
            set_limits()
            run()
        finally:
            os._exit(127)

    def run(self) -> int:
        """Until the tree is gone; returns the exit status of the engine's first process.

        A guardian that fails kills itself: the server then ends what it leaves.
        """
        try:
            return self._run()
        except BaseException:
            import traceback

            traceback.print_exc()
            os.kill(os.getpid(), signal.SIGKILL)
            raise

    def _run(self) -> int:
        while not self._reap():
            ready, _, _ = select.select(list(self._inputs), [], [], self._next_deadline())
            for descriptor in ready:
                if descriptor in self._inputs:
                    self._inputs[descriptor]()
            if self._asked_to_end:
                self._begin_end()
            self._keep_deadlines()
        remove_shared_memory(self._shared)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return self._status if self._status is not None else 1

    def _take_wake_ups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _take_command(self) -> None:
        command = os.read(0, 64)
        if not command:
            self.remove_input(0)
        if b"k" in command:
            self._kill_at = 0.0
        elif not command or b"t" in command:
            self._begin_end()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._asked_to_end = True

    def _begin_end(self) -> None:
        if self._kill_at is not None:
            return
        self._note_shared_memory()
        now = time.monotonic()
        self._term_again_at = now + _SECOND_TERM_S
        self._kill_at = now + self._grace_s
        self._signal_root()

    def _signal_root(self) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._root, signal.SIGTERM)

    def _next_deadline(self) -> float | None:
        deadlines = [at for at in (self._term_again_at, self._kill_at) if at is not None]
        if not deadlines:
            return None
        # Never below a millisecond: after the kill we wait for the kernel to finish.
        return max(min(deadlines) - time.monotonic(), 0.02)

    def _keep_deadlines(self) -> None:
        now = time.monotonic()
        if self._term_again_at is not None and now >= self._term_again_at:
            self._term_again_at = None
            self._signal_root()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill(now)

    def _kill(self, now: float) -> None:
        """SIGKILL; again and again until `_reap` finds nobody, because who dies may have forked.

        Resource trackers remove the shared memory of those who died, so their turn comes last.
        """
        if self._killed_at is None:
            self._killed_at = now
            self._note_shared_memory()
        if now < self._killed_at + _TRACKER_S:
            signal_all([pid for pid in descendants(os.getpid()) if not is_tracker(pid)])
            return
        if self._cgroup is not None:
            write(f"{self._cgroup}/cgroup.kill", b"1")
            # Kernels before 5.14 have no such file.
            signal_all(cgroup_members(self._cgroup))
        signal_all(descendants(os.getpid()))

    def _note_shared_memory(self) -> None:
        self._shared |= shared_memory(descendants(os.getpid()))

    def _reap(self) -> bool:
        """Collect the dead; True when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            code = os.waitstatus_to_exitcode(status)
            if pid in self._on_exit:
                self._note_shared_memory()
                self._on_exit.pop(pid)(code)
            if pid == self._root:
                self._status = code if code >= 0 else 128 - code
                self._term_again_at = None
                self._note_shared_memory()
                signal_all(descendants(os.getpid()), signal.SIGTERM)
                leftover = time.monotonic() + _LEFTOVER_S
                self._kill_at = leftover if self._kill_at is None else min(self._kill_at, leftover)


def descendants(ancestor: int) -> list[int]:
    """All living processes below `ancestor`, from the parents in /proc (proc_pid_stat(5))."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and pid != ancestor:
            found.append(pid)
    return found


def signal_all(pids: list[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def cgroup_members(cgroup: str) -> list[int]:
    """Processes in a cgroup."""
    try:
        with open(f"{cgroup}/cgroup.procs", "rb") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def is_tracker(pid: int) -> bool:
    """Whether it is a resource tracker of multiprocessing."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return b"resource_tracker" in file.read()
    except OSError:
        return False


def shared_memory(pids: list[int]) -> set[str]:
    """Files in /dev/shm that these processes have mapped and that are of a known kind.

    By inode: a semaphore is mapped under the temporary name that sem_open(3) gave it first.
    """
    files = shared_memory_files()
    found = set()
    for pid in pids if files else []:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:  # noqa: PTH123
            # address, rights, offset, device, inode, path (proc_pid_maps(5))
            inodes = {int(line.split()[4]) for line in file if b" /dev/shm/" in line}
            found |= {files[inode] for inode in inodes if inode in files}
    return found


def shared_memory_files() -> dict[int, str]:
    """Files of a known kind in /dev/shm by their inodes."""
    try:
        with os.scandir("/dev/shm") as entries:  # noqa: S108
            return {
                entry.inode(): entry.path
                for entry in entries
                if entry.name.startswith(_SHARED_MEMORY)
            }
    except OSError:
        return {}


def remove_shared_memory(paths: set[str]) -> None:
    """Remove what dead processes left, unless somebody else has it mapped."""
    left = {path for path in paths if os.path.exists(path)}  # noqa: PTH110
    if left:
        left -= shared_memory([int(name) for name in os.listdir("/proc") if name.isdigit()])  # noqa: PTH208
    for path in left:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108


def set_limits() -> None:
    """For a process of an engine; what the system does not allow stays as it is."""
    # A core dump is as large as a model.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    write("/proc/self/oom_score_adj", _OOM_SCORE)


def write(path: str, data: bytes) -> None:
    """Into a file of the kernel's; one that is not there or refuses is no error."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def become(argv: list[str]) -> None:
    """Replace this process by a program, without standard input."""
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]} cannot be started: {error}\n".encode())


if __name__ == "__main__":
    grace, group, directory, *program = sys.argv[1:]
    sys.exit(Guardian(float(grace), lambda: become(program), group, directory).run())
