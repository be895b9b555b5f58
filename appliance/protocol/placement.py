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


class PlanVerdict(Wire, frozen=True, kw_only=True):
    """The answer of a dry run: what a load would do, without doing it."""

    verdict: str
    """`loaded`, `place`, `evict`, `wait` or `refuse`."""
    message: str
    need_bytes: int
    """Per rank."""
    need: MemoryParts | None = None
    """The same by part, and where it comes from."""
    placement: Placement | None = None
    evicts: list[str] = []
    """Models that would have to go."""
    load_s: float | None = None
    """Median of earlier loads of this model here."""
    loads: int = 0
    """How many loads that median is made of."""
