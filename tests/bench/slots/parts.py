"""What is simulated: devices, models, and the requests of a trace. Times are in seconds."""

from dataclasses import dataclass, field

from appliance.units import GIB


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One device and what engines may take of it."""

    id: str
    index: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: the same number of bytes on each of `tp_size` devices."""

    name: str
    need_bytes: int
    load_s: float
    tp_size: int = 1
    concurrency: int = 64
    """Requests that its engine works on at once; more wait inside the engine."""
    slowdown: float = 0.5
    """How much longer a request takes in a full engine than alone, as a share."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request; `service_s` is what it takes alone in a ready engine."""

    model: str
    at: float
    service_s: float
    is_batch: bool = False
    session: int | None = None
    """The session whose next request follows its answer."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One client that asks, waits for the answer, thinks and asks again, until it leaves."""

    model: str
    start: float
    end: float
    """No request is sent from then on."""
    service_s: float
    think_s: float
    is_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Who asks for what, and the machine that answers."""

    name: str
    about: str
    devices: tuple[DeviceSpec, ...]
    models: tuple[ModelSpec, ...]
    requests: tuple[Request, ...] = ()
    """They come at their time whatever happened to those before."""
    sessions: tuple[Session, ...] = ()
    horizon_s: float
    """Serving time counts until then; who waits then is still served."""
    idle_timeout_s: float | None = None
    """An idle engine goes after this; None: it stays."""
    release_s: float = 1.0
    """From the end of an engine until its memory is back."""
    pinned: frozenset[str] = field(default_factory=frozenset)

    @property
    def longest_service_s(self) -> float:
        """The longest that a request may take, in a full engine."""
        alone = [request.service_s for request in self.requests]
        alone += [session.service_s for session in self.sessions]
        slowdown = max((model.slowdown for model in self.models), default=0.0)
        return max(alone, default=0.0) * (1 + slowdown)


def devices(*sizes_gib: float) -> tuple[DeviceSpec, ...]:
    """Devices of these sizes."""
    return tuple(
        DeviceSpec(id=f"gpu-{index}", index=index, total_bytes=int(size * GIB))
        for index, size in enumerate(sizes_gib)
    )
