"""The server itself, and the snapshot of everything."""

from datetime import datetime
from enum import StrEnum

from appliance.protocol.base import API_VERSION, Wire
from appliance.protocol.batches import BatchProgress
from appliance.protocol.devices import Device, DeviceSource
from appliance.protocol.engines import Engine
from appliance.protocol.launchers import Launcher
from appliance.protocol.models import Model
from appliance.protocol.pulls import Pull


class ServerInfo(Wire, frozen=True, kw_only=True):
    """Who answers."""

    host: str
    """Name of the machine."""
    version: str
    api_version: int = API_VERSION
    pid: int
    started_at: datetime
    listen: str
    """Address of the OpenAI-compatible endpoint, `http://127.0.0.1:8000`."""
    device_source: DeviceSource
    vllm_version: str | None = None
    """Of the engine environment in use; None: none is installed."""
    draining: bool = False
    launchers: list[Launcher] = []


class Alert(Wire, frozen=True, kw_only=True):
    """Something that its owner should look at."""

    id: str
    at: datetime
    severity: str
    """`warning` or `error`."""
    message: str
    hint: str = ""
    model: str | None = None
    engine_id: str | None = None
    device_id: str | None = None
    """Of an alert that is over once the device is healthy."""


class Totals(Wire, frozen=True, kw_only=True):
    """Rates over the last few seconds."""

    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    requests_total: int = 0


class Snapshot(Wire, frozen=True, kw_only=True):
    """All that a UI shows, at event number `seq`."""

    seq: int
    server: ServerInfo
    devices: list[Device]
    models: list[Model]
    engines: list[Engine]
    alerts: list[Alert]
    totals: Totals = Totals()
    batches: list[BatchProgress] = []
    """The open ones and the newest of those that are over, the oldest first."""
    pulls: list[Pull] = []
    """In the same way."""


class WarmOutcome(StrEnum):
    """What a comparison of an engine that was forked with one that was started plainly found."""

    SAME = "same"
    """The same answer to the last bit: engines of this environment are forked."""
    DIFFERS = "differs"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    """There is nothing to check it with: no list of modules, or no device."""
    STALE = "stale"
    """The environment's packages changed after the check."""


class WarmStart(Wire, frozen=True, kw_only=True):
    """The check of an engine environment; with any outcome but `same` its starts stay plain."""

    outcome: WarmOutcome
    checked_at: datetime
    packages: str
    """Stamp of the packages that were checked."""
    reason: str = ""
    """For a person, where the outcome is not `same`."""
    plain_s: float | None = None
    """Until a tiny model was ready, started in the plain way."""
    warm_s: float | None = None
    """Until it was ready, forked from the launcher."""
    launcher_bytes: int = 0
    """Memory of the launcher while no engine runs."""


class EngineEnvironment(Wire, frozen=True, kw_only=True):
    """A venv that holds one vLLM build."""

    name: str
    platform: str
    """`cpu` or `cuda`."""
    vllm_version: str
    torch_version: str
    python_version: str
    in_use: bool
    """The one that models get which name none."""
    size_bytes: int
    created_at: datetime
    has_unix_socket: bool
    has_sleep_mode: bool
    has_kv_cache_bytes: bool
    flags: list[str]
    """Command line options that this build accepts."""
    warm_start: WarmStart | None = None
    """None: it was not checked, so its starts are plain."""


class ErrorDetail(Wire, frozen=True, kw_only=True):
    """What happened, why, what to do."""

    code: str
    message: str
    hint: str = ""
    param: str | None = None


class ErrorBody(Wire, frozen=True, kw_only=True):
    """The error body of the management API."""

    error: ErrorDetail
