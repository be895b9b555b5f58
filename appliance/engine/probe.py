"""Asks an environment what its vLLM can do, by running a script with its Python."""

import os
import subprocess
from pathlib import Path

import msgspec

from appliance.errors import EngineEnvironmentError

_SCRIPT = Path(__file__).with_name("probe_inside.py")
# A first import on a slow disk, without compiled files, takes minutes.
TIMEOUT_S = 600.0


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a vLLM build says about itself."""

    vllm_version: str
    torch_version: str
    python_version: str
    platform: str
    has_sleep_mode: bool
    flags: list[str]


def probe(python: Path, *, timeout_s: float = TIMEOUT_S) -> ProbeResult:
    """Run the script with that Python; raises EngineEnvironmentError."""
    # Isolated, or modules beside the script would hide those that vLLM imports.
    command = [str(python), "-I", str(_SCRIPT)]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineEnvironmentError(
            f"vLLM could not be imported within {timeout_s:.0f} s.",
            hint="The machine may be very busy or its disk slow: run the installation again.",
        ) from error
    except OSError as error:
        raise EngineEnvironmentError(
            f"The environment's Python cannot be run: {error}.",
            hint="Remove the environment and install it again.",
        ) from error
    if done.returncode != 0:
        raise EngineEnvironmentError(
            f"vLLM does not start in this environment: {_last_line(done.stderr)}",
            hint="Remove the environment and install it again; if it stays so, this vLLM build "
            "does not suit the machine.",
        )
    return parse_probe(done.stdout)


def parse_probe(output: str) -> ProbeResult:
    """The facts from the script's output, which vLLM may have added lines to."""
    for line in reversed(output.splitlines()):
        if not line.startswith("{"):
            continue
        try:
            result = msgspec.json.decode(line, type=ProbeResult)
        except msgspec.MsgspecError:
            continue
        if result.flags and result.vllm_version:
            return result
    raise EngineEnvironmentError(
        f"The vLLM of this environment did not say what it can do: {_last_line(output)}",
        hint="Remove the environment and install it again.",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
