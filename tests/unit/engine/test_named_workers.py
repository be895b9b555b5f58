import subprocess
import sys
from pathlib import Path

from appliance.engine.process import named_workers
from appliance.engine.proctree import ProcessInfo, session_processes
from tests.support.wait import wait_until

# A core that has a worker, and that is about to execute another program.
TREE = """
import os, signal, sys

def named(name):
    with open("/proc/self/comm", "w") as file:
        file.write(name)

named("VLLM::EngineCore")
if os.fork() == 0:
    named("VLLM::Worker_TP0")
    signal.pause()
if os.fork() == 0:
    signal.pause()
print("there", flush=True)
signal.pause()
"""


def test_a_program_that_a_worker_is_about_to_execute_is_none_of_its_kind(tmp_path: Path) -> None:
    script = tmp_path / "tree.py"
    script.write_text(TREE)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True
    ) as core:
        try:
            assert core.stdout is not None
            core.stdout.readline()
            wait_until(lambda: has_worker(session_processes(core.pid)), 10)
            found = session_processes(core.pid)
            assert len(found) == 3
            names = sorted((info.name, info.pid == core.pid) for info in named_workers(found))
            assert names == [("VLLM::EngineCor", True), ("VLLM::Worker_TP", False)]
        finally:
            for info in session_processes(core.pid):
                subprocess.run(["kill", "-9", str(info.pid)], check=False)


def has_worker(seen: list[ProcessInfo]) -> bool:
    return any(info.name == "VLLM::Worker_TP" for info in seen)
