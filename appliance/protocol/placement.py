"""Placement: the decision which devices an engine takes, and how many bytes on each."""

from appliance.protocol.base import Wire
from appliance.protocol.estimates import MemoryParts


class Share(Wire, frozen=True, kw_only=True):
    """Bytes that one rank takes on one device."""

    device_id: str
    device_index: int
    memory_bytes: int


class Placement(Wire, frozen=True, kw_only=True):
    """Where an engine runs; one share per tensor parallel rank."""

    shares: list[Share]
    tp_size: int = 1


class Eviction(Wire, frozen=True, kw_only=True):
    """An engine that would have to go, and what its loss is expected to cost."""

    model: str
    memory_bytes: int
    """On all its devices together."""
    reload_s: float
    """To load it again."""
    reuse_ratio: float
    """The chance that it is asked for again soon."""
    cost_s: float
    """Expected waiting: one times the other."""


class DeviceMemory(Wire, frozen=True, kw_only=True):
    """What a device has for a model that may use it."""

    device_id: str
    device_index: int
    total_bytes: int
    free_bytes: int
    most_bytes: int
    """Free once all are unloaded that may be."""


class MemoryHolder(Wire, frozen=True, kw_only=True):
    """Memory of a device that is not given up for others."""

    device_index: int
    model: str | None
    """None: processes that are not ours."""
    memory_bytes: int
    reason: str
    """`pinned`, `always on`, with `exclusive` if it shares with nobody; or `other processes`."""


class PlanSuggestion(Wire, frozen=True, kw_only=True):
    """A change with which the model could be placed now; the planner has tried it."""

    kind: str
    """The setting, `stop` for other models; several with a plus."""
    text: str
    command: str
    """What to type."""


class PlanVerdict(Wire, frozen=True, kw_only=True):
    """The answer of a dry run: what a load would do, without doing it."""

    verdict: str
    """`loaded`, `place`, `evict`, `wait` or `refuse`."""
    message: str
    need_bytes: int
    """Per rank."""
    need: MemoryParts | None = None
    """The same by part, and where it comes from."""
    hint: str = ""
    """What to do about a refusal."""
    placement: Placement | None = None
    evicts: list[str] = []
    """Models that would have to go."""
    evictions: list[Eviction] = []
    """Their engines, and what their loss costs."""
    have: list[DeviceMemory] = []
    """For a refusal: the devices that it may use."""
    holders: list[MemoryHolder] = []
    """For a refusal: who keeps their memory."""
    suggestions: list[PlanSuggestion] = []
    """For a refusal: what would make it fit."""
    load_s: float | None = None
    """Median of earlier loads of this model here."""
    loads: int = 0
    """How many loads that median is made of."""
