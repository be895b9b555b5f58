"""Has vLLM inspect all of its architectures at once, so that no first start has to.

The first start of an architecture would import vLLM once more for that (9 s of CPU time).
"""

import os
import subprocess
from pathlib import Path

from appliance.engine.command import build_base_env
from appliance.engine.environments import EnvironmentRecord
from appliance.protocol.devices import DeviceKind

_SCRIPT = Path(__file__).with_name("model_infos_inside.py")
_TIMEOUT_S = 600.0


def has_model_infos(record: EnvironmentRecord, cache: Path) -> bool:
    """Whether `inspect_models` has run for this environment and cache, with whatever success."""
    return _marker(record, cache).exists()


def inspect_models(record: EnvironmentRecord, cache: Path) -> int:
    """How many architectures vLLM has inspected; 0: this build cannot do it in this way."""
    kind = DeviceKind.CPU if record.platform == "cpu" else DeviceKind.GPU
    env = build_base_env(kind, record, cache, os.environ) | {"VLLM_LOGGING_LEVEL": "CRITICAL"}
    try:
        done = subprocess.run(
            [str(record.directory / "bin" / "python"), "-I", str(_SCRIPT)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=env,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    marker = _marker(record, cache)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    lines = done.stdout.split()
    is_number = bool(lines) and lines[-1].isdigit()
    return int(lines[-1]) if done.returncode == 0 and is_number else 0


def _marker(record: EnvironmentRecord, cache: Path) -> Path:
    # vLLM itself finds out when a file of its own no longer fits the code.
    return cache / "vllm" / record.name / "modelinfos" / ".all"
