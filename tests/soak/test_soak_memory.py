"""Thousands of loads and unloads of stub engines: the server's memory is flat."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.stub.conftest import MakeModel, MakeServer
from tests.support.memory import anonymous_bytes
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(3600)

MODELS = 4
# The history of events is full after some two hundred, that of loads before.
FIRST = 1000
MEASURED = 1000
# Python's allocator takes memory from the system by the MiB: one piece more is not a trend.
MOST_GROWN = 1024**2 + 256 * 1024


def loads(server: ServerProcess, model: str, count: int) -> None:
    """Load and unload, on a connection of its own."""
    transport = httpx.HTTPTransport(uds=str(server.paths.admin_socket))
    address = f"http://appliance/admin/v1/models/{model}"
    with httpx.Client(transport=transport, timeout=60) as client:

        def is_in(state: str) -> bool:
            now = client.get(address).json()
            assert now["state"] != "failed", now["failure"]
            return bool(now["state"] == state)

        for _ in range(count):
            assert client.post(f"{address}/load").status_code == 202
            wait_until(lambda: is_in("ready"), LOAD_S, f"{model} ready")
            assert client.post(f"{address}/unload").is_success
            wait_until(lambda: is_in("stopped"), 60, f"{model} stopped")


def in_parallel(server: ServerProcess, count: int) -> None:
    """So many loads in all, of all models at once."""
    with ThreadPoolExecutor(MODELS) as pool:
        runs = [pool.submit(loads, server, f"m{n}", count // MODELS) for n in range(MODELS)]
        for each in runs:
            each.result()


def test_memory_is_flat(make_server: MakeServer, make_model: MakeModel) -> None:
    server = make_server('[[devices.simulated]]\nmemory = "8GiB"\n' * MODELS)
    for number in range(MODELS):
        server.add_model(f"m{number}", make_model(f"m{number}", load_s=0))
    assert server.process is not None
    held = []
    for done in range(0, FIRST + MEASURED, 100):
        in_parallel(server, 100)
        held.append(anonymous_bytes(server.process.pid))
        print(done + 100, held[-1])
    grown = held[-1] - held[FIRST // 100 - 1]
    assert grown < MOST_GROWN, held
