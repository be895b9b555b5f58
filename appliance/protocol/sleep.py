"""Sleep: the tier between ready and unloaded, and what was found out about it."""

from datetime import datetime
from typing import Literal

from appliance.protocol.base import Wire

SleepLevel = Literal[1, 2]
"""1 keeps the weights in RAM; 2 keeps nothing and reads them again from disk."""
SleepSetting = Literal["auto", "off", 1, 2]
"""`auto`: the level that works and that RAM has room for."""


class SleepVerdict(Wire, frozen=True, kw_only=True):
    """Whether one level works for a model's configuration, an engine version and a TP size.

    Found out by sleeping: the bytes that the devices got back, and the greedy answer to the same
    prompt before and after. Bytes are those of all ranks together.
    """

    level: SleepLevel
    works: bool
    reason: str = ""
    """Why it does not work, for a person."""
    vllm_version: str
    freed_bytes: int = 0
    residue_bytes: int = 0
    """What stays on the devices while it is asleep."""
    host_bytes: int = 0
    """RAM that it takes: the engine keeps it from its first sleep until it ends."""
    sleep_s: float | None = None
    wake_s: float | None = None
    at: datetime
