"""A tiny Llama with random weights: real enough for a real engine, and ready in seconds.

`engine install` compares warm and plain starts with it; tests use it as well.
`python -m appliance.engine.tiny_model ENGINE_PYTHON TARGET` makes one by hand.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.errors import EngineEnvironmentError

_SCRIPT = Path(__file__).with_name("tiny_model_inside.py")
_TIMEOUT_S = 300.0


def make_tiny_model(engine_python: Path, target: Path) -> Path:
    """The model's directory, made with an engine environment's Python if it is not there.

    Raises EngineEnvironmentError.
    """
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _run([str(engine_python), "-I", str(_SCRIPT), str(partial)])
        if not target.exists():
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineEnvironmentError(f"A tiny model could not be made: {error}.") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise EngineEnvironmentError(f"A tiny model could not be made: {lines[-1]}")


if __name__ == "__main__":
    print(make_tiny_model(Path(sys.argv[1]), Path(sys.argv[2])))
