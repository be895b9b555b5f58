"""Composition root: every object of the server, built in one visible order."""

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ControllerRouterHandler

from appliance import __version__
from appliance.api.batches import BatchController
from appliance.api.engines import EngineController, engine_environments
from appliance.api.errors import error_body, on_appliance_error, on_http_error, on_unexpected
from appliance.api.keys import KeyController
from appliance.api.models import ModelController
from appliance.api.overview import Overview, host_name
from appliance.api.pulls import PullController
from appliance.api.system import SystemController, health, livez, readyz, root
from appliance.auth import Keys, bearer
from appliance.auth import Scope as KeyScope
from appliance.batch.clock import Clock
from appliance.batch.endpoints import BatchEndpoints
from appliance.batch.files import FileStore
from appliance.batch.index import Limits
from appliance.batch.news import BatchNews
from appliance.batch.runner import BatchRunner
from appliance.batch.service import BatchService
from appliance.config.load import is_loopback
from appliance.config.paths import Paths
from appliance.config.settings import Settings
from appliance.engine.cgroup import EngineCgroups
from appliance.engine.environments import EnvironmentStore
from appliance.engine.spawner import EngineSpawner
from appliance.engine.warm_launchers import WarmLaunchers
from appliance.errors import ApplianceError, EngineEnvironmentError, ModelNotFoundError
from appliance.events import EventBus
from appliance.gateway.asgi import TRANSPORT, Answer, Receive, Scope, Send, header
from appliance.gateway.dispatch import Gateway
from appliance.gateway.errors import status_of
from appliance.gpu.inventory import DeviceReader
from appliance.hub.places import Places
from appliance.hub.pulled_models import PulledModels
from appliance.hub.pulls import Pulls
from appliance.jobs.scheduler import Jobs
from appliance.protocol.events import ServerChanged
from appliance.protocol.models import Task
from appliance.protocol.system import ServerInfo
from appliance.registry.registry import Registry
from appliance.slots.history import LoadHistory
from appliance.slots.launcher import EngineLauncher
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.sampling import Sampling
from appliance.slots.scheduler import SlotScheduler
from appliance.slots.sleep_history import SleepHistory
from appliance.slots.slot import Running, Slot
from appliance.store.database import Database

logger = logging.getLogger(__name__)

_CUT_OFF_S = 2.0


class Appliance:
    """All objects of one server, and the order in which they start and stop."""

    def __init__(
        self, settings: Settings, paths: Paths, reader: DeviceReader, cgroups: EngineCgroups
    ) -> None:
        self.settings = settings
        self.paths = paths
        self.listen = ""
        self._started_at = datetime.now(UTC)
        self._draining = False
        self._ready = False
        self._warming: asyncio.Task[None] | None = None
        self._batches_starting: asyncio.Task[None] | None = None
        self.bus = EventBus()
        self.database = Database(paths.database)
        self.keys = Keys(self.database)
        self.registry = Registry(self.database)
        self.history = LoadHistory(self.database)
        self.sleep_history = SleepHistory(self.database)
        self.environments = EnvironmentStore(paths.engine_environments)
        self.launchers = WarmLaunchers(
            is_enabled=settings.engines.launcher, on_change=self._tell_server
        )
        slots: dict[str, Slot] = {}

        def running() -> list[Running]:
            return [slot.running for slot in slots.values() if slot.running is not None]

        self.monitor = DeviceMonitor(
            reader,
            reserve_bytes=settings.devices.reserve_bytes,
            running=running,
            measure_launchers=self.launchers.measure,
            freeing_s=settings.devices.freeing_timeout_s,
            answer_s=settings.devices.answer_timeout_s,
        )
        self.slots = SlotScheduler(
            registry=self.registry,
            launcher=EngineLauncher(
                paths=paths,
                settings=settings.engines,
                environments=self.environments,
                history=self.history,
                spawner=EngineSpawner(paths.engine_records, self.launchers, cgroups),
                publish=self.bus.publish,
            ),
            monitor=self.monitor,
            history=self.history,
            sleep_history=self.sleep_history,
            slots=slots,
            settings=settings.slots,
            engines=settings.engines,
            publish=self.bus.publish,
        )
        self.bus.listen(self.slots.board.on_event)
        self.sampling = Sampling(
            self.monitor,
            self.slots.board,
            interval_s=settings.devices.sample_interval_s,
            publish=self.bus.publish,
        )
        clock = Clock()
        self.files = FileStore(
            self.database,
            paths.files,
            most_bytes=settings.batches.max_file_bytes,
            reserve_bytes=settings.batches.disk_reserve_bytes,
            clock=clock,
        )
        self.jobs = Jobs(
            unload_idle=self.slots.unload_idle,
            retire_launchers=self._retire_launchers,
            delete_expired_files=self.files.delete_expired,
        )
        self.batch_news = BatchNews(self.database, self.bus.publish)
        places = Places(settings=settings.pulls, paths=paths, env=os.environ)
        self.pulls = Pulls(
            database=self.database,
            models=PulledModels(self.registry, places.cache, self.slots.board.renew),
            bus=self.bus,
            places=places,
        )
        self.overview = Overview(self.slots.board, self.batch_news, self.pulls, self.bus, self.info)
        self.batch_runner = BatchRunner(
            database=self.database,
            files=self.files,
            slots=self.slots,
            directory=paths.batches,
            task_of=self._task_of,
            limits=Limits(
                lines=settings.batches.max_lines,
                line_bytes=settings.batches.max_line_bytes,
                single_model=settings.batches.single_model,
            ),
            concurrency=settings.batches.max_concurrency,
            clock=clock,
            on_change=self.batch_news.tell,
        )
        self.batches = BatchService(self.database, self.files, self.batch_runner, clock)
        batch_endpoints = BatchEndpoints(self.files, self.batches)
        self.gateway = Gateway(
            self.slots,
            self.registry,
            self.keys,
            must_have_key=self.must_have_key,
            allowed_hosts=settings.server.allowed_hosts,
            max_body_bytes=settings.server.max_body_bytes,
            heartbeat_s=settings.server.heartbeat_s,
            others={"files": batch_endpoints, "batches": batch_endpoints},
        )

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._ready and not self._draining

    def must_have_key(self) -> bool:
        """Whether `/v1` over TCP asks for a key."""
        server = self.settings.server
        return server.require_keys or not is_loopback(server.host)

    def info(self) -> ServerInfo:
        """Who answers."""
        return ServerInfo(
            host=host_name(),
            version=__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            listen=self.listen,
            device_source=self.monitor.source,
            vllm_version=self._vllm_version(),
            draining=self._draining,
            launchers=self.launchers.views(),
        )

    async def open(self) -> None:
        """Read what is stored. Raises ApplianceError; nothing runs yet."""
        await self.database.open()
        await self.keys.load()
        await self.registry.load()
        await self.history.load()
        await self.sleep_history.load()
        await self.monitor.open()
        await self.files.open()
        await self.batch_news.open()
        await self.pulls.open()

    def start(self) -> None:
        """Begin to work."""
        self._warming = asyncio.create_task(self._warm_up())
        self.slots.start()
        self._batches_starting = asyncio.create_task(self.batch_runner.start())
        self.sampling.start()
        self.batch_news.start()
        self.pulls.start()
        self.jobs.start()
        self._ready = True

    async def drain(self, hurry: asyncio.Event) -> None:
        """Take no further requests, and let those in flight end within the drain limit.

        Whatever is not over then, or once `hurry` is set, is ended with an error.
        """
        self._draining = True
        self._tell_server()
        self.jobs.stop()
        await self.pulls.stop()
        await self.batch_runner.stop()
        await self.batch_news.stop()
        await self.slots.drain(self.settings.server.drain_timeout_s, hurry)
        await self.gateway.cut_off(_CUT_OFF_S)
        self.bus.close()

    async def close(self) -> None:
        """End all engines, then the rest."""
        self.monitor.stop_waiting()
        await self.slots.stop()
        beginnings = [task for task in (self._warming, self._batches_starting) if task is not None]
        await asyncio.gather(*beginnings, return_exceptions=True)
        await self.launchers.stop()
        await self.sampling.stop()
        await self.monitor.close()
        await self.database.close()

    async def _warm_up(self) -> None:
        """The first engine finds its launcher ready."""
        try:
            environment = self.environments.get(self.settings.engines.environment)
        except EngineEnvironmentError as error:
            logger.warning("server.no_engine_environment message=%s", error)
            return
        await self.launchers.find(environment, self.monitor.kind, self.paths.cache)

    async def _retire_launchers(self) -> None:
        """Those of environments that are gone, or that nothing is started in."""
        names = {known.settings.environment for known in self.registry.models()}
        names.add(self.settings.engines.environment)
        installed = await asyncio.to_thread(self.environments.records)
        in_use = await asyncio.to_thread(self.environments.in_use)
        wanted = {name or in_use for name in names}
        self.launchers.retire_unused({each.name for each in installed if each.name in wanted})

    def _task_of(self, model: str) -> Task | None:
        try:
            return self.registry.get(model).settings.task
        except ModelNotFoundError:
            return None

    def _tell_server(self) -> None:
        self.bus.publish(ServerChanged(server=self.info()))

    def _vllm_version(self) -> str | None:
        try:
            return self.environments.get(self.settings.engines.environment).vllm_version
        except EngineEnvironmentError:
            return None


def build_litestar(appliance: Appliance) -> Litestar:
    """The management API and the health checks."""
    handlers: list[ControllerRouterHandler] = [
        SystemController,
        BatchController,
        ModelController,
        EngineController,
        PullController,
        KeyController,
        engine_environments,
        health,
        livez,
        readyz,
        root,
    ]
    services = {
        "overview": appliance.overview,
        "bus": appliance.bus,
        "slots": appliance.slots,
        "board": appliance.slots.board,
        "registry": appliance.registry,
        "environments": appliance.environments,
        "keys": appliance.keys,
        "batches": appliance.batches,
        "pulls": appliance.pulls,
    }
    return Litestar(
        route_handlers=handlers,
        dependencies={
            name: Provide(_always(service), sync_to_thread=False)
            for name, service in services.items()
        },
        exception_handlers={
            ApplianceError: on_appliance_error,
            HTTPException: on_http_error,
            Exception: on_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="vLLM Appliance management API",
            version=__version__,
            path="/admin/v1/schema",
            render_plugins=[JsonRenderPlugin(path="/")],
        ),
        state=State({"keys": appliance.keys, "is_ready": lambda: appliance.is_ready}),
        logging_config=None,
    )


class Transport:
    """The ASGI application of one listener: marks where a request came from, then routes it.

    The data plane does not pass the web framework: it costs 20 microseconds a request.
    """

    def __init__(self, name: str, gateway: Gateway, keys: Keys, litestar: Litestar) -> None:
        self._name = name
        self._keys = keys
        self._gateway = gateway
        self._litestar = litestar

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope[TRANSPORT] = self._name
        if self._name != "unix" and scope["type"] == "http" and scope["path"].startswith("/admin"):
            try:
                self._keys.verify(bearer(header(scope, b"authorization")), KeyScope.ADMIN)
            except ApplianceError as error:
                body = msgspec.json.encode(error_body(error))
                await Answer(send, b"-").json(status_of(error), body)
                return
        if scope["type"] == "http" and (scope["path"] == "/v1" or scope["path"].startswith("/v1/")):
            await self._gateway(scope, receive, send)
        else:
            await self._litestar(scope, receive, send)  # type: ignore[arg-type]


def _always(service: object) -> Callable[[], object]:
    def provide() -> object:
        return service

    return provide
