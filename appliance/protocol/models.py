"""Models: settings that people choose, and the state they see."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

import msgspec

from appliance.protocol.base import Body, Wire
from appliance.protocol.engines import EngineState, Failure, LoadProgress
from appliance.protocol.estimates import MemoryParts
from appliance.protocol.placement import Placement
from appliance.protocol.sleep import SleepLevel, SleepSetting, SleepVerdict

TpSize = int | Literal["auto"]
"""Devices that a model is split over; `auto`: as few as it fits on."""


class Task(StrEnum):
    """What a model is for."""

    GENERATE = "generate"
    EMBED = "embed"


class ModelSettings(Wire, frozen=True, kw_only=True):
    """What the owner decides about a model."""

    path: str
    """Local directory that holds config.json and the weights."""
    task: Task
    context_length: int | None = None
    """Tokens; None: what the model's config says."""
    dtype: str = "auto"
    always_on: bool = False
    """Loaded at start, never evicted, restarted when it dies."""
    pinned: bool = False
    """Never evicted and never unloaded for being idle; loaded on demand."""
    idle_timeout_s: float | None = None
    """Seconds; negative: never; None: the server's default."""
    tp_size: TpSize = 1
    """Devices that it is split over (tensor parallel); `auto`: as few as it fits on."""
    devices: list[str] = []
    """Ids or indices of the devices it may use; empty: any."""
    avoid_devices: list[str] = []
    """Ids or indices of devices it may not use."""
    exclusive: bool = False
    """Shares its devices with no other model."""
    environment: str | None = None
    """Engine environment; None: the one in use."""
    kv_cache_bytes: int | None = None
    """Per rank; None: enough for the context length and a few requests at once."""
    memory_bytes: int | None = None
    """Bytes to reserve per rank instead of the estimate."""
    max_sequences: int | None = None
    """Requests that the engine works on at once; None: the engine's default."""
    extra_args: list[str] = []
    env: dict[str, str] = {}
    sleep: SleepSetting = "auto"
    """What becomes of an idle engine instead of an unload, where vLLM can do it."""

    @property
    def ranks(self) -> int:
        """How many ways its engine is split; 1 as long as that is not settled."""
        return 1 if self.tp_size == "auto" else self.tp_size


class ModelCreate(Body, frozen=True, kw_only=True):
    """Add a model from a local directory. `task` is found out where it is left out."""

    id: str
    path: str
    task: Task | None = None
    context_length: int | None = None
    dtype: str = "auto"
    always_on: bool = False
    pinned: bool = False
    idle_timeout_s: float | None = None
    tp_size: TpSize = 1
    devices: list[str] = []
    avoid_devices: list[str] = []
    exclusive: bool = False
    environment: str | None = None
    kv_cache_bytes: int | None = None
    memory_bytes: int | None = None
    max_sequences: int | None = None
    extra_args: list[str] = []
    env: dict[str, str] = {}
    sleep: SleepSetting = "auto"


class ModelChange(Body, frozen=True, kw_only=True):
    """Change some settings; fields left out stay as they are."""

    context_length: int | None | msgspec.UnsetType = msgspec.UNSET
    dtype: str | msgspec.UnsetType = msgspec.UNSET
    always_on: bool | msgspec.UnsetType = msgspec.UNSET
    pinned: bool | msgspec.UnsetType = msgspec.UNSET
    idle_timeout_s: float | None | msgspec.UnsetType = msgspec.UNSET
    tp_size: TpSize | msgspec.UnsetType = msgspec.UNSET
    devices: list[str] | msgspec.UnsetType = msgspec.UNSET
    avoid_devices: list[str] | msgspec.UnsetType = msgspec.UNSET
    exclusive: bool | msgspec.UnsetType = msgspec.UNSET
    environment: str | None | msgspec.UnsetType = msgspec.UNSET
    kv_cache_bytes: int | None | msgspec.UnsetType = msgspec.UNSET
    memory_bytes: int | None | msgspec.UnsetType = msgspec.UNSET
    max_sequences: int | None | msgspec.UnsetType = msgspec.UNSET
    extra_args: list[str] | msgspec.UnsetType = msgspec.UNSET
    env: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    sleep: SleepSetting | msgspec.UnsetType = msgspec.UNSET


class Model(Wire, frozen=True, kw_only=True):
    """A known model as it is now."""

    id: str
    settings: ModelSettings
    state: EngineState
    architecture: str
    context_length: int
    """Tokens that a request may use, prompt and answer together."""
    weights_bytes: int
    need_bytes: int
    """Memory per rank, as estimated or measured."""
    created_at: datetime
    need: MemoryParts | None = None
    """`need_bytes` by part, and where it comes from."""
    engine_id: str | None = None
    """The running engine, or the last one that was tried."""
    placement: Placement | None = None
    progress: LoadProgress | None = None
    failure: Failure | None = None
    first_failure: Failure | None = None
    """Of the same series and earlier, if there was more than one: the newest may only follow."""
    waiting: int = 0
    """Requests in the queue."""
    waits_for: str | None = None
    """Why the queue does not move, for a person."""
    in_flight: int = 0
    """Requests that the engine works on."""
    memory_bytes: int = 0
    """Measured, all ranks."""
    last_used_at: datetime | None = None
    idle_unload_at: datetime | None = None
    tokens_per_s: float | None = None
    ttft_p95_s: float | None = None
    requests_total: int = 0
    sleep: list[SleepVerdict] = []
    """What is known about each level that was tried with this configuration and engine."""
    sleep_level: SleepLevel | None = None
    """While it is asleep."""
