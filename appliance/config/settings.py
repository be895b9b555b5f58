"""All settings with their defaults; the string below a field documents it.

Sizes are written as `8GiB`, durations as `10m`; both are checked and turned into numbers when the
settings are loaded.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from appliance.protocol.devices import DeviceSource
from appliance.units import MIB, parse_duration, parse_size

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class CgroupUse(StrEnum):
    """When engines get cgroups of their own."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the configuration file; an unknown key is an error."""


class ServerSettings(_Section, frozen=True, kw_only=True):
    """Table `[server]`."""

    host: str = "127.0.0.1"
    """Address of the OpenAI-compatible endpoint. Beyond loopback it needs keys."""
    port: Port = 8000
    """TCP port; 0 takes a free one."""
    allowed_hosts: list[str] = []
    """Names of this machine that clients may use without keys, beyond localhost."""
    require_keys: bool = False
    """Ask for an API key on `/v1` on a loopback address too."""
    max_body: str | int = "64MiB"
    """Largest request body; a larger one is refused with 413."""
    drain_timeout: str | float = "30s"
    """How long running requests may go on after a stop was asked for."""
    heartbeat: str | float = "3s"
    """While a model loads, a waiting stream gets a comment this often."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""

    @property
    def max_body_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.max_body)

    @property
    def drain_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.drain_timeout)

    @property
    def heartbeat_s(self) -> float:
        """Seconds."""
        return parse_duration(self.heartbeat)


class SlotSettings(_Section, frozen=True, kw_only=True):
    """Table `[slots]`."""

    idle_timeout: str | float = "15m"
    """An idle model gives its memory back after this; `never` keeps it."""
    max_keep_alive: str | float = "never"
    """The longest idle timeout that a request may ask for; `never`: any, also to stay for ever."""
    max_queue: Positive = 256
    """Requests that may wait for one model; more get 429."""
    max_wait: str | float = "30s"
    """How long a request waits for idle room before a busy model is drained for it."""
    drain_limit: str | float = "10m"
    """An engine that is to go and whose requests do not end is stopped after this."""
    min_loaded: str | float = "2s"
    """A loaded model with work is kept at least this long before it is drained for another."""
    batch_max_wait: str | float = "15m"
    """How long a batch waits before models that people use are drained for it."""
    batch_turn: str | float = "1m"
    """A model that was loaded for a batch in this way is kept at least this long."""
    sleep_memory: str | int | None = None
    """RAM that sleeping engines may keep weights in; left out: a quarter of it."""
    asleep_timeout: str | float = "4h"
    """A sleeping model that nobody asks for is unloaded after this; `never` keeps it."""
    queue_timeout: str | float = "30m"
    """A request of people that waited this long is given up with 503."""

    @property
    def idle_timeout_s(self) -> float:
        """Seconds; negative: never."""
        return parse_duration(self.idle_timeout)

    @property
    def max_keep_alive_s(self) -> float:
        """Seconds; negative: no limit."""
        return parse_duration(self.max_keep_alive)

    @property
    def max_wait_s(self) -> float:
        """Seconds."""
        return parse_duration(self.max_wait)

    @property
    def drain_limit_s(self) -> float:
        """Seconds."""
        return parse_duration(self.drain_limit)

    @property
    def min_loaded_s(self) -> float:
        """Seconds."""
        return parse_duration(self.min_loaded)

    @property
    def batch_max_wait_s(self) -> float:
        """Seconds."""
        return parse_duration(self.batch_max_wait)

    @property
    def batch_turn_s(self) -> float:
        """Seconds."""
        return parse_duration(self.batch_turn)

    @property
    def sleep_memory_bytes(self) -> int | None:
        """Bytes, or None for the default."""
        return None if self.sleep_memory is None else parse_size(self.sleep_memory)

    @property
    def asleep_timeout_s(self) -> float:
        """Seconds; negative: never."""
        return parse_duration(self.asleep_timeout)

    @property
    def queue_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.queue_timeout)


class EngineSettings(_Section, frozen=True, kw_only=True):
    """Table `[engines]`."""

    environment: str | None = None
    """Engine environment for models that name none; left out: the one chosen by `engine use`."""
    launcher: bool = True
    """Fork engines from a process that has imported vLLM already, where that was checked."""
    stall_timeout: str | float = "10m"
    """A load without any sign of progress for this long is given up."""
    frozen_timeout: str | float = "45s"
    """A ready engine that answers nobody and does nothing for this long is replaced."""
    hang_timeout: str | float = "15m"
    """The same, for one that is busy without progress, or waits for something itself."""
    stop_timeout: str | float = "20s"
    """How long an engine may take to end by itself before it is killed."""
    sleep_timeout: str | float = "3m"
    """An engine that takes longer to fall asleep, or to wake, is stopped instead."""
    cgroup: CgroupUse = CgroupUse.AUTO
    """A cgroup for each engine: `auto` where the server's own is delegated to it, `on`, `off`."""
    retry_first: str | float = "5s"
    """Pause after the first failed load; it doubles with each further one."""
    retry_most: str | float = "5m"
    """Longest pause between two tries."""
    max_attempts: Positive = 5
    """Failures in a row, or within an hour, after which only a person starts the model again."""
    keep_logs: Positive = 5
    """Logs kept for each model, one for each time that it was loaded."""
    log_size: str | int = "256MiB"
    """What one log may take on disk, 1MiB at least; its beginning and its newest lines stay."""

    @property
    def stall_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.stall_timeout)

    @property
    def frozen_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.frozen_timeout)

    @property
    def hang_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.hang_timeout)

    @property
    def stop_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.stop_timeout)

    @property
    def sleep_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.sleep_timeout)

    @property
    def retry_first_s(self) -> float:
        """Seconds."""
        return parse_duration(self.retry_first)

    @property
    def retry_most_s(self) -> float:
        """Seconds."""
        return parse_duration(self.retry_most)

    @property
    def log_size_bytes(self) -> int:
        """Bytes."""
        return max(parse_size(self.log_size), MIB)


class BatchSettings(_Section, frozen=True, kw_only=True):
    """Table `[batches]`."""

    max_lines: Positive = 50_000
    """Requests that a batch may have."""
    max_file: str | int = "200MiB"
    """Largest file that may be uploaded; a larger one is refused with 413."""
    max_line: str | int = "4MiB"
    """Longest line of a batch's file."""
    single_model: bool = False
    """Refuse batches that name several models, as OpenAI does."""
    max_concurrency: Positive = 256
    """Requests of batches that one engine may have at a time."""
    disk_reserve: str | int = "1GiB"
    """What uploads and results leave free on the disk."""

    @property
    def max_file_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.max_file)

    @property
    def max_line_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.max_line)

    @property
    def disk_reserve_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.disk_reserve)


class PullSettings(_Section, frozen=True, kw_only=True):
    """Table `[pulls]`."""

    parallel: Positive = 2
    """Pulls that run at once; more wait for their turn."""
    connections: Positive = 4
    """Files that one pull fetches at once."""
    cache: str | None = None
    """Hugging Face cache; left out: that of HF_HUB_CACHE or HF_HOME, else see docs/pulls.md."""
    endpoint: str | None = None
    """Address of the hub or a mirror; left out: what HF_ENDPOINT says, else huggingface.co."""
    token_file: str | None = None
    """File (mode 0600) with the token for the hub; left out: `hub-token` in the state directory."""
    disk_reserve: str | int = "2GiB"
    """What pulls leave free on the disk."""
    give_up: str | float = "1h"
    """A pull that gets nothing for this long, as the network or the hub is down, fails."""

    @property
    def disk_reserve_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.disk_reserve)

    @property
    def give_up_s(self) -> float:
        """Seconds."""
        return parse_duration(self.give_up)


class SimulatedDevice(_Section, frozen=True, kw_only=True):
    """One entry of `[[devices.simulated]]`: a pretended GPU; its engines run on the CPU."""

    memory: str | int
    """Size, for example `8GiB`."""
    name: str = "Simulated GPU"
    """Shown to people."""
    nvlink: str | None = None
    """Devices with the same name here are linked directly to each other."""
    numa_node: int | None = None
    """Processor that it is attached to."""

    @property
    def memory_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.memory)


class DeviceSettings(_Section, frozen=True, kw_only=True):
    """Table `[devices]`."""

    source: DeviceSource | None = None
    """`nvml`, `cpu` or `simulated`; left out: simulated if any is listed, else GPUs, else CPU."""
    cpu_memory: str | int | None = None
    """What engines may take of the RAM; left out: three quarters of it."""
    reserve: str | int = "256MiB"
    """Kept free on each device."""
    sample_interval: str | float = "1s"
    """Between two readings."""
    answer_timeout: str | float = "20s"
    """GPUs whose driver has not answered for this long are quarantined until it does."""
    freeing_timeout: str | float = "30s"
    """An ended engine's GPU memory that is not back after this quarantines the GPU."""
    simulated: list[SimulatedDevice] = []
    """Pretended GPUs, each with a `memory` and, if you like, a `name` and links; see below."""

    @property
    def cpu_memory_bytes(self) -> int | None:
        """Bytes, or None for the default."""
        return None if self.cpu_memory is None else parse_size(self.cpu_memory)

    @property
    def reserve_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.reserve)

    @property
    def sample_interval_s(self) -> float:
        """Seconds."""
        return parse_duration(self.sample_interval)

    @property
    def answer_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.answer_timeout)

    @property
    def freeing_timeout_s(self) -> float:
        """Seconds."""
        return parse_duration(self.freeing_timeout)


class Settings(_Section, frozen=True, kw_only=True):
    """The whole configuration file."""

    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    slots: SlotSettings = msgspec.field(default_factory=SlotSettings)
    engines: EngineSettings = msgspec.field(default_factory=EngineSettings)
    batches: BatchSettings = msgspec.field(default_factory=BatchSettings)
    devices: DeviceSettings = msgspec.field(default_factory=DeviceSettings)
    pulls: PullSettings = msgspec.field(default_factory=PullSettings)
