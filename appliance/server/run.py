"""The life of the server process: lock, sweep, listen, work, drain, stop."""

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Generator

import uvicorn
import uvloop

from appliance.config.load import is_loopback
from appliance.config.paths import Paths
from appliance.config.settings import Settings
from appliance.engine.cgroup import EngineCgroups
from appliance.engine.records import sweep
from appliance.errors import ConfigError
from appliance.gpu.background import open_in_time
from appliance.server.app import Appliance, Transport, build_litestar
from appliance.server.listeners import listen_tcp, listen_unix, lock_state
from appliance.server.logging import set_up_logging

logger = logging.getLogger(__name__)

# After the drain, what is still open is cut off.
_FULL_COLLECTION_AFTER = 2
_CUT_OFF_S = 2


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: this process stops in an order of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def run(settings: Settings, paths: Paths) -> None:
    """Serve until SIGTERM or SIGINT. Raises ApplianceError if the server cannot start."""
    set_up_logging(settings.server.log_level)
    _raise_file_limit()
    paths.create()
    lock = lock_state(paths.lock)
    try:
        uvloop.run(_serve(settings, paths))
    finally:
        os.close(lock)


def _raise_file_limit() -> None:
    """To what the system allows: the usual 1024 are gone with five hundred requests at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: Settings, paths: Paths) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    cgroups = await asyncio.to_thread(
        EngineCgroups.open, settings.engines.cgroup, instance_of(paths)
    )
    await asyncio.to_thread(sweep, paths.engine_records)
    await asyncio.to_thread(cgroups.sweep)
    reader = await open_in_time(settings.devices)
    appliance = Appliance(settings, paths, reader, cgroups)
    await appliance.open()
    _require_keys(appliance)
    tcp = listen_tcp(settings.server)
    unix = listen_unix(paths.admin_socket)
    appliance.listen = _address(tcp)
    litestar = build_litestar(appliance)
    servers = [
        _Server(_config(Transport(name, appliance.gateway, appliance.keys, litestar)))
        for name in ("tcp", "unix")
    ]
    appliance.start()
    serving = [
        asyncio.create_task(server.serve(sockets=[listener]), name=f"listener {listener.family}")
        for server, listener in zip(servers, (tcp, unix), strict=True)
    ]
    logger.info("server.started listen=%s socket=%s", appliance.listen, paths.admin_socket)
    _settle_collector()
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({stopping, *serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        await _stop(appliance, servers, serving, hurry)


async def _stop(
    appliance: Appliance,
    servers: list[_Server],
    serving: list[asyncio.Task[None]],
    hurry: asyncio.Event,
) -> None:
    if appliance.slots.in_flight:
        logger.info(
            "server.draining: waiting up to %.0f s for %d requests; another signal stops at once",
            appliance.settings.server.drain_timeout_s,
            appliance.slots.in_flight,
        )
    await appliance.drain(hurry)
    for server in servers:
        server.should_exit = True
    # Engines end while the last answers leave.
    await asyncio.gather(*serving, return_exceptions=True)
    await appliance.close()
    with contextlib.suppress(OSError):
        appliance.paths.admin_socket.unlink()
    logger.info("server.stopped")


def _config(app: Transport) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_CUT_OFF_S,
        timeout_keep_alive=75,
        backlog=2048,
    )


def instance_of(paths: Paths) -> str:
    """Tells the engines of several servers on a machine apart."""
    return hashlib.sha256(str(paths.state.resolve()).encode()).hexdigest()[:8]


def _require_keys(appliance: Appliance) -> None:
    """Beyond this machine nobody is served without a key."""
    host = appliance.settings.server.host
    if not is_loopback(host) and appliance.keys.count == 0:
        raise ConfigError(
            f"The server is to listen on {host}, which others can reach, but there are no keys.",
            hint="Start it on 127.0.0.1 once, run `appliance keys create NAME`, then start again.",
        )


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _settle_collector() -> None:
    """What lives until the end is not looked at again, and what comes later is soon.

    CPython collects the oldest generation only once a quarter of what its last full collection
    found is new (gcmodule.c, long_lived_total): tens of thousands of objects, if that was before
    the freeze. So it is done once more, when nearly nothing is left to find, and often, as it takes
    about a millisecond then: each engine that ends leaves 25 KiB of cycles.
    """
    gc.collect()
    gc.freeze()
    gc.collect()
    youngest, middle, _ = gc.get_threshold()
    gc.set_threshold(youngest, middle, _FULL_COLLECTION_AFTER)
