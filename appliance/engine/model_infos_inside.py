"""Runs with an engine environment's Python: fills vLLM's cache of what its architectures can do.

vLLM inspects an architecture in a process of its own when it is first used, which costs as much as
an import of vLLM. This is that process, once for all of them. Prints how many it could inspect.
"""

import importlib
from typing import Any


def main() -> None:
    """Inspect every architecture; one that cannot be imported here is left for later."""
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    importlib.import_module("vllm.plugins").load_general_plugins()
    registry._run_in_subprocess = lambda work: work()
    inspected = 0
    for model in list(registry.ModelRegistry.models.values()):
        try:
            model.inspect_model_cls()
        except Exception:  # noqa: BLE001, S112 - it needs a package or a GPU that is not there
            continue
        inspected += 1
    print(f"\n{inspected}")


if __name__ == "__main__":
    main()
