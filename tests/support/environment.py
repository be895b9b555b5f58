"""An engine environment that runs a Python of ours, for what needs no vLLM."""

import sys
from datetime import UTC, datetime

from appliance.engine.environments import EnvironmentRecord


def record(python: str = sys.executable) -> EnvironmentRecord:
    """The manifest of one for the CPU."""
    return EnvironmentRecord(
        name="cpu-test",
        platform="cpu",
        vllm_version="0.32.0",
        torch_version="2",
        python_version="3.11",
        launch=[python, "-m", "vllm.entrypoints.openai.api_server"],
        flags=[],
        size_bytes=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        has_sleep_mode=False,
    )
