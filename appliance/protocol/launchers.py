"""Warm launchers: processes that have imported vLLM and fork engines."""

from enum import StrEnum

from appliance.protocol.base import Wire


class LauncherState(StrEnum):
    """Whether engines can be forked."""

    WARMING = "warming"
    WARM = "warm"
    FAILED = "failed"
    """Engines are started in the plain way meanwhile."""


class Launcher(Wire, frozen=True, kw_only=True):
    """The launcher of one engine environment."""

    environment: str
    state: LauncherState
    pid: int | None = None
    import_s: float = 0.0
    memory_bytes: int = 0
    """What it holds, pages that its engines share divided among all; 0 before it is measured."""
    problem: str = ""
    """Why it ended last."""
