"""The server itself, and the snapshot of everything."""

from datetime import datetime

from appliance.protocol.base import API_VERSION, Wire
from appliance.protocol.devices import Device, DeviceSource
from appliance.protocol.engines import Engine
from appliance.protocol.models import Model


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


class ErrorDetail(Wire, frozen=True, kw_only=True):
    """What happened, why, what to do."""

    code: str
    message: str
    hint: str = ""
    param: str | None = None


class ErrorBody(Wire, frozen=True, kw_only=True):
    """The error body of the management API."""

    error: ErrorDetail
