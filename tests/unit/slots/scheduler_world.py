"""The real scheduler over engines that are objects only: no process, no socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from appliance.config.settings import EngineSettings, SimulatedDevice, SlotSettings
from appliance.engine.sleep import EngineSleep
from appliance.engine.sleeper import Sleeper
from appliance.engine.transitions import EngineStates
from appliance.estimate.estimator import Estimate
from appliance.gpu.reading import Reading
from appliance.gpu.simulated import SimulatedReader
from appliance.protocol.devices import DeviceKind
from appliance.protocol.engines import Engine, EngineState, Failure, FailureCause
from appliance.protocol.events import Event
from appliance.protocol.models import ModelSettings, Task
from appliance.protocol.sleep import SleepLevel, SleepVerdict
from appliance.registry.facts import ModelFacts
from appliance.registry.registry import KnownModel, Registry
from appliance.slots.history import LoadHistory
from appliance.slots.launcher import EngineLauncher
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.plans import DeviceRoom
from appliance.slots.scheduler import SlotScheduler
from appliance.slots.sleep_history import SleepHistory
from appliance.slots.slot import Running, Slot
from appliance.slots.views import placement_of
from appliance.store.database import Database
from appliance.units import GIB

_ENVIRONMENT: Any = SimpleNamespace(
    name="stub", vllm_version="0", has_sleep_mode=True, has_flag=lambda _: True
)
_START = datetime(2026, 1, 1, tzinfo=UTC)


def facts(**changes: Any) -> ModelFacts:
    """A model of a gibibyte."""
    fields = {
        "architecture": "LlamaForCausalLM", "task": Task.GENERATE, "max_context": 4096,
        "weights_bytes": GIB, "layers": 16, "heads": 16, "kv_heads": 8, "head_size": 64,
        "vocabulary": 32000, "dtype": "bfloat16", "has_chat_template": True, "hidden": 1024,
        "mlp_sizes": (4096,),
    }  # fmt: skip
    return ModelFacts(**fields | changes)


class Registered:
    """Known models, without a store."""

    def __init__(self) -> None:
        self.known: dict[str, KnownModel] = {}

    def add(self, model: str, known_facts: ModelFacts | None = None, **settings: Any) -> None:
        """Add one; it needs 10 GiB unless `memory_bytes` says otherwise."""
        settings = {"memory_bytes": 10 * GIB, "sleep": "off"} | settings
        chosen = ModelSettings(path="/nowhere", task=Task.GENERATE, **settings)
        self.known[model] = KnownModel(
            id=model,
            settings=chosen,
            facts=known_facts or facts(),
            problem=None,
            created_at=_START,
        )

    def models(self) -> list[KnownModel]:
        return list(self.known.values())

    def get(self, model: str) -> KnownModel:
        return self.known[model]

    async def read_again(self, model: str) -> None:
        return None


class SleepOfStub:
    """Sleeps and wakes at once, and counts."""

    def __init__(self) -> None:
        self.level: SleepLevel | None = None
        self.host_bytes = 0
        self.residue_bytes = GIB
        self.wakes = 0

    async def fall_asleep(self, level: SleepLevel, measure: Callable[[], Awaitable[int]]) -> None:
        self.level = level
        await asyncio.sleep(0)

    async def wake(self) -> None:
        self.wakes += 1
        await asyncio.sleep(0)

    def verdict(self, failed: object) -> SleepVerdict:
        return SleepVerdict(
            level=self.level or 1, works=failed is None, vllm_version="0", wake_s=0.1, at=_START
        )


class StubSupervisor:
    """An engine that loads when it is let and ends when it is told to."""

    def __init__(self, known: KnownModel, rooms: Sequence[DeviceRoom], wanted: Estimate) -> None:
        self.id = f"eng_{next(_numbers)}"
        self.model = known.id
        self.placement = placement_of(rooms, wanted)
        self.environment = _ENVIRONMENT
        self.spec: Any = SimpleNamespace(
            model=known.id, settings=known.settings, context_length=known.context_length,
            weights_bytes=GIB, kv_cache_bytes=wanted.kv_cache_bytes, device_kind=DeviceKind.GPU,
        )  # fmt: skip
        self.failure: Failure | None = None
        self.memory_bytes = 0
        self.load_s = 1.0
        self.phases: dict[str, float] = {}
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.log: Any = SimpleNamespace(window=lambda *_: SimpleNamespace(lines=[]))
        self.sleep = SleepOfStub()
        self._states = EngineStates(known.id, self.id, publish=lambda _: None, changed=lambda: None)
        self.sleeper = Sleeper(
            cast(EngineSleep, self.sleep),
            self._states,
            is_stopping=lambda: self.is_stopping,
            end=self.stop,
        )
        self._ending = asyncio.Event()

    @property
    def state(self) -> EngineState:
        return self._states.now

    @property
    def has_ended(self) -> bool:
        return self.state in {EngineState.STOPPED, EngineState.FAILED}

    @property
    def is_stopping(self) -> bool:
        return self._ending.is_set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        self._states.to(EngineState.LOADING, "")
        await self.may_load.wait()
        if not self.is_stopping:
            self._states.to(EngineState.READY, "")
            on_ready()
        await self._ending.wait()
        self._states.to(EngineState.STOPPING, "")
        await asyncio.sleep(0)
        self._states.to(EngineState.STOPPED, "")

    def drain(self, reason: str) -> None:
        self._states.to(EngineState.DRAINING, reason)

    def undrain(self, reason: str) -> None:
        self._states.to(EngineState.READY, reason)

    def stop(self, reason: str) -> None:
        self._ending.set()
        self.may_load.set()

    def fail(self, message: str) -> None:
        self.failure = Failure(
            cause=FailureCause.CRASHED, message=message, hint="", at=datetime.now(UTC)
        )
        self._states.to(EngineState.FAILED, message)
        self.stop(message)

    def pids(self) -> set[int]:
        return set()

    def measure(self) -> int:
        return 0

    def note_oom_kills(self) -> None:
        return None

    def view(self) -> Engine:
        return Engine(
            id=self.id, model=self.model, state=self.state, environment="stub", vllm_version="0",
            placement=self.placement, created_at=_START,
        )  # fmt: skip


_numbers = count(1)


class World:
    """A scheduler with its registry, devices and engines."""

    def __init__(
        self, device_bytes: Sequence[int], database: Database, settings: SlotSettings
    ) -> None:
        self.registry = Registered()
        self.reader = SimulatedReader(
            [SimulatedDevice(name=f"g{n}", memory=size) for n, size in enumerate(device_bytes)]
        )
        self.events: list[Event] = []
        self.engines: list[StubSupervisor] = []
        self.on_launch: Callable[[StubSupervisor], None] = lambda _: None
        slots: dict[str, Slot] = {}
        self.monitor = DeviceMonitor(
            self.reader,
            reserve_bytes=0,
            running=lambda: [slot.running for slot in slots.values() if slot.running is not None],
            measure_launchers=_no_launchers,
        )
        self.history = LoadHistory(database)
        self.slots = SlotScheduler(
            registry=cast(Registry, self.registry),
            launcher=cast(EngineLauncher, self),
            monitor=self.monitor,
            history=self.history,
            sleep_history=SleepHistory(database),
            slots=slots,
            settings=settings,
            engines=EngineSettings(),
            publish=self.events.append,
        )

    def prepare(
        self, known: KnownModel, rooms: Sequence[DeviceRoom], kind: DeviceKind,
        wanted: Estimate, attempts: int, *, keep_logs_of: object = (),
    ) -> StubSupervisor:  # fmt: skip
        """As the launcher's."""
        engine = StubSupervisor(known.split_over(len(rooms)), rooms, wanted)
        self.engines.append(engine)
        self.on_launch(engine)
        return engine

    def running(self, model: str) -> Running | None:
        """Its engine with its accounts."""
        return self.slots.board.slot(model).running

    def change_device(self, index: int, **changes: Any) -> None:
        """Another reading of a device, from the next look at it on."""
        found = self.reader._readings[index]
        fields = {name: getattr(found, name) for name in Reading.__dataclass_fields__}
        self.reader._readings[index] = Reading(**fields | changes)

    async def settle(self) -> None:
        """All that can happen without time passing has happened."""
        for _ in range(50):
            await asyncio.sleep(0)


async def _no_launchers() -> int:
    return 0


@asynccontextmanager
async def world(
    database: Database, *device_bytes: int, settings: SlotSettings | None = None
) -> AsyncIterator[World]:
    """A world whose scheduler is not started yet; its engines end with it."""
    made = World(device_bytes, database, settings or SlotSettings())
    await made.monitor.open()
    try:
        yield made
    finally:
        made.monitor.stop_waiting()
        await made.slots.stop()
        await made.monitor.close()
