"""Estimates: the memory that a model needs, before it is loaded and after."""

from enum import StrEnum

from appliance.protocol.base import Wire
from appliance.protocol.devices import DeviceKind


class Basis(StrEnum):
    """Where a number comes from."""

    ESTIMATED = "estimated"
    """From the model's files."""
    MEASURED = "measured"
    """From earlier loads of the same configuration on this machine."""
    CHOSEN = "chosen"
    """The owner has set it."""


class MemoryParts(Wire, frozen=True, kw_only=True):
    """Bytes of one rank, by part."""

    total_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    """Of the largest step, or of sampling."""
    graphs_bytes: int
    context_bytes: int
    """CUDA context and libraries; on the CPU the engine's processes."""
    basis: Basis
    margin_ratio: float
    """How far the total may be off, as a share of it."""


class DeviceFit(Wire, frozen=True, kw_only=True):
    """What fits one device, or a group of `tp_size` devices that are like it."""

    device_id: str
    """Empty for a size that was asked for."""
    device_index: int
    name: str
    total_bytes: int
    """What engines may take of it."""
    free_bytes: int
    fits: bool
    """The model as it is set, once the device is empty."""
    fits_now: bool
    largest_context: int
    """Tokens, for the planned requests at once; 0: the model does not fit."""
    largest_context_single: int
    """Tokens, for one request at a time."""


class Remedy(Wire, frozen=True, kw_only=True):
    """A change to the settings with which the model fits a device that it does not fit as it is."""

    text: str
    command: str
    context_length: int
    tp_size: int
    need_bytes: int
    """Per rank."""


class EstimateReport(Wire, frozen=True, kw_only=True):
    """What a model needs, and where it fits."""

    model: str
    architecture: str
    device_kind: DeviceKind
    context_length: int
    max_context: int
    tp_size: int
    rank: MemoryParts
    """Of each of `tp_size` devices."""
    kv_bytes_per_token: int
    kv_requests: int
    """Requests of the whole context that the recommended KV cache holds."""
    kv_smallest_bytes: int
    """KV cache for one request of the whole context: the engine does not start with less."""
    kv_recommended_bytes: int
    tp_sizes: list[int]
    """Over how many devices the model can be split, up to eight."""
    problem: str | None = None
    """Why it cannot be split over `tp_size` devices."""
    fits: bool | None = None
    """Whether enough of the devices are large enough; None without devices."""
    devices: list[DeviceFit] = []
    remedies: list[Remedy] = []
    """Where it does not fit."""


class EstimateRequest(Wire, frozen=True, kw_only=True):
    """Other settings than the model's own; fields left out stay as they are."""

    context_length: int | None = None
    tp_size: int | None = None
    device: str | None = None
    """Index or id of a device of this machine; None: all of them."""
    device_bytes: int | None = None
    """A GPU of this size instead of this machine's devices."""
