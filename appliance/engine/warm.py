"""A process that has imported vLLM once and forks engines; runs in an engine environment.

A cold start of a small model is nearly all Python imports, three times over. Here they happen once.
Each engine is forked from this process below a guardian of its own, which also forks the engine's
core and workers: vLLM still believes that multiprocessing spawns them, so every child comes from a
process that has one thread and has touched no GPU. vLLM's own files stay as they are.

Standard input is a socket whose other end only the server holds: one JSON message per engine, with
the log, the control pipe and the status pipe as file descriptors. End of file: the server is gone,
and so is this process; its engines end by their own control pipes.

Usage: python -I warm.py MODULE ... [MODULE:CLASS.METHOD ...]
A method is called once, here, and does nothing in the engines.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MOST_DESCRIPTORS = 250


def load(name: str) -> Any:
    """A program beside this file; the engine environment does not hold the appliance."""
    spec = importlib.util.spec_from_file_location(
        f"appliance_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_spawn: Any = load("warm_spawn")


class WarmProcess:
    """The parent of engines. One thread, no GPU, nothing that a fork would break."""

    def __init__(self, modules: list[str]) -> None:
        before = dict(os.environ)
        self.failed = [each for each in modules if ":" not in each and not _imports(each)]
        self.failed += [each for each in modules if ":" in each and not _runs_once(each)]
        # What imports put into the environment must survive in the engines.
        self._added = {
            name: value for name, value in os.environ.items() if before.get(name) != value
        }
        # Read now: an upgrade may replace the file while this process lives.
        self._guardian = load("guardian")
        gc.collect()
        gc.freeze()

    def serve(self, server: socket.socket) -> None:
        """Fork engines until the server is gone."""
        # The kernel collects our children; each engine's guardian reports through its own pipe.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, 1 << 20, _MOST_DESCRIPTORS)
            if not message:
                return
            try:
                answer: dict[str, object] = {"pid": self._fork(server, message, descriptors)}
            except OSError as error:
                answer = {"error": str(error)}
            for descriptor in descriptors:
                os.close(descriptor)
            server.sendall(json.dumps(answer).encode())

    def _fork(self, server: socket.socket, message: bytes, descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            server.close()
            engine = Engine(json.loads(message), self._added, self._guardian)
            run_forked(lambda: engine.live(descriptors))
        return pid


class Engine:
    """One engine, from the moment of its fork: the guardian's side and the root's side."""

    def __init__(self, request: dict[str, Any], added: dict[str, str], program: Any) -> None:
        self._request = request
        self._added = added
        self._program = program
        self._guardian: Any = None

    def live(self, descriptors: list[int]) -> int:
        """The guardian's life; returns when no process of the engine is left."""
        log, control, status = descriptors
        os.setsid()
        os.dup2(control, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _spawn.close_all_but({0, 1, 2, status})
        set_environment(self._request["env"], self._added)
        os.chdir(self._request["cwd"])
        set_title(f"appliance-guardian {self._request['name']}")
        inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def run_root() -> None:
            outer.close()
            os.close(status)
            become_root(self._request["argv"], inner)

        self._guardian = self._program.Guardian(
            float(self._request["grace_s"]),
            run_root,
            self._request["cgroup"],
            self._request["temporary"],
        )
        inner.close()
        self._guardian.add_input(outer.fileno(), lambda: self._fork_child(outer))
        code = int(self._guardian.run())
        os.write(status, b"%d" % code)
        return code

    def _fork_child(self, requests: socket.socket) -> None:
        """Multiprocessing in the engine asks for a child: a pipe with JSON, one for its status."""
        data, descriptors, _, _ = socket.recv_fds(requests, 16, _MOST_DESCRIPTORS)
        if not data:
            self._guardian.remove_input(requests.fileno())
            return
        request_pipe, status, *passed = descriptors
        with os.fdopen(request_pipe, "rb") as pipe:
            text = pipe.read()
        if not text.endswith(b"}"):
            # Who asked was killed before it had said what it wants.
            for descriptor in (status, *passed):
                os.close(descriptor)
            return
        request = json.loads(text)

        def run() -> None:
            os.close(status)
            run_forked(lambda: become_child(request, passed, self._added, requests))

        def report(code: int) -> None:
            with contextlib.suppress(OSError):
                os.write(status, code.to_bytes(_spawn.CODE_BYTES, "big", signed=True))
            os.close(status)

        pid = self._guardian.fork(run, report)
        os.write(status, int(pid).to_bytes(_spawn.CODE_BYTES, "big", signed=True))
        for descriptor in passed:
            os.close(descriptor)


def become_root(argv: list[str], nursery: socket.socket) -> None:
    """vLLM's API server, in the process that the guardian forked for it."""

    def serve() -> int:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _spawn.fork_children_through(nursery)
        apply_thread_count()
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv[:] = ["vllm", *argv]
        set_title("VLLM::APIServer")
        entry = importlib.import_module("vllm.entrypoints.launchers.api_server.entry")
        entry.main()
        return 0

    run_forked(serve)


def become_child(
    request: dict[str, Any], passed: list[int], added: dict[str, str], requests: socket.socket
) -> int:
    """A process that multiprocessing wanted to spawn."""
    # Private parts of multiprocessing, as its own `spawn` uses them.
    process: Any = importlib.import_module("multiprocessing.process")
    tracker: Any = importlib.import_module("multiprocessing.resource_tracker")
    spawn: Any = importlib.import_module("multiprocessing.spawn")
    util: Any = importlib.import_module("multiprocessing.util")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The guardian's is the pipe by which the server gives orders.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Its own children come from the same guardian; the root's end of the socket travels along.
    (nursery,) = _spawn.renumber([*passed[1:]], request["descriptors"], [passed[0]])
    requests.detach()
    set_environment(request["env"], added)
    os.chdir(request["cwd"])
    sys.argv[:] = request["argv"]
    apply_thread_count()
    _spawn.fork_children_through(socket.socket(fileno=nursery))
    process._children = set()
    util._finalizer_registry.clear()
    tracker._resource_tracker._fd = request["tracker"]
    return int(spawn._main(request["pipe"], os.dup(request["pipe"])))


def run_forked(work: Callable[[], int]) -> None:
    """Run the rest of a forked process, with the duties that `os._exit` skips."""
    code = 1
    try:
        code = work()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - the last frame of a process
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            import atexit

            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def set_environment(wanted: dict[str, str], added: dict[str, str]) -> None:
    """The request's environment, and what the imports added unless the request sets it."""
    target = {**added, **wanted}
    for name in list(os.environ):
        if name not in target:
            del os.environ[name]
    for name, value in target.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    # It remembers TMPDIR as it was at the first question.
    tempfile.tempdir = None


def apply_thread_count() -> None:
    """OpenMP read OMP_NUM_THREADS when it was loaded, which was before the fork."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    torch = sys.modules.get("torch")
    if wanted.isdigit() and torch is not None and torch.get_num_threads() != int(wanted):
        torch.set_num_threads(int(wanted))


def set_title(title: str) -> None:
    """Name of the process, where the library for it is there."""
    with contextlib.suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle(title)


def reasons_against_forking() -> list[str]:
    """Why this process must not be the parent of engines; empty: it may."""
    reasons = []
    threads = os.listdir("/proc/self/task")  # noqa: PTH208
    if len(threads) > 1:
        reasons.append(f"{len(threads)} threads run")
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            target = str(Path(f"/proc/self/fd/{name}").readlink())
            if target.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri")):
                reasons.append(f"{target} is open")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        reasons.append("CUDA is initialised")
    if torch is not None and not reasons and _is_fork_bad(torch):
        reasons.append("CUDA could not be used in a fork")
    return reasons


def _is_fork_bad(torch: Any) -> bool:
    """Ask in a child: torch refuses CUDA there after more calls than `is_initialized` knows of."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(bool(torch.cuda._is_in_bad_fork())))
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # noqa: BLE001 - a module that does not import is imported by the engine
        return False
    return True


def _runs_once(name: str) -> bool:
    """Call a class method whose work every engine would repeat, and write to memory for it."""
    module, _, path = name.partition(":")
    owner_name, _, method = path.partition(".")
    try:
        owner = getattr(importlib.import_module(module), owner_name)
        getattr(owner, method)()
    except Exception:  # noqa: BLE001 - the engines do it themselves
        return False
    setattr(owner, method, classmethod(lambda _: None))
    return True


def main() -> None:
    """Import, check, tell the server, fork engines."""
    started = time.monotonic()
    server = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warm = WarmProcess(sys.argv[1:])
    report = {
        "import_s": round(time.monotonic() - started, 2),
        "failed": warm.failed,
        "unsafe": reasons_against_forking(),
    }
    server.sendall(json.dumps(report).encode())
    if not report["unsafe"]:
        set_title("appliance-launcher")
        warm.serve(server)


if __name__ == "__main__":
    main()
