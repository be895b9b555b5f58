import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.connection import EngineConnections
from appliance.engine.liveness import Sample, Watchdog, watch
from appliance.engine.proctree import Activity

FROZEN_S, HANG_S = 40.0, 300.0


def sample(
    at: float, *, counters: float | None = 1.0, cpu_s: float = 0.0, is_stopped: bool = False
) -> Sample:
    activity = Activity(cpu_s=cpu_s, read_bytes=0, is_stopped=is_stopped)
    return Sample(at=at, awaited=2, counters=counters, activity=activity)


def first_verdict(samples: list[Sample]) -> tuple[float, str] | None:
    watchdog = Watchdog(0.0, frozen_s=FROZEN_S, hang_s=HANG_S)
    for each in samples:
        if verdict := watchdog.judge(each):
            return each.at, verdict
    return None


def test_engine_that_does_nothing_for_those_who_wait_hangs() -> None:
    verdict = first_verdict([sample(float(at)) for at in range(0, 100, 5)])
    assert verdict is not None
    assert verdict[0] == FROZEN_S
    assert "2 requests wait" in verdict[1]
    assert "do nothing" in verdict[1]


def test_engine_that_computes_is_given_more_time() -> None:
    verdict = first_verdict([sample(float(at), cpu_s=float(at)) for at in range(0, 400, 5)])
    assert verdict is not None
    assert verdict[0] == HANG_S
    assert "busy without any progress" in verdict[1]


def test_engine_with_a_stopped_process_is_not_excused_by_another_that_spins() -> None:
    samples = [sample(float(at), cpu_s=float(at), is_stopped=True) for at in range(0, 100, 5)]
    verdict = first_verdict(samples)
    assert verdict is not None
    assert verdict[0] == FROZEN_S
    assert "stopped" in verdict[1]


def test_engine_whose_metrics_do_not_answer_makes_no_progress() -> None:
    samples = [sample(float(at), counters=None) for at in range(0, 100, 5)]
    assert first_verdict(samples) is not None


@given(st.lists(st.floats(0.1, FROZEN_S - 0.1), min_size=1, max_size=50))
def test_engine_whose_counters_move_in_time_never_hangs(gaps: list[float]) -> None:
    at, samples = 0.0, [sample(0.0)]
    for number, gap in enumerate(gaps):
        at += gap
        samples.append(sample(at, counters=float(number + 2)))
    assert first_verdict(samples) is None


def test_nobody_waits_so_nothing_is_missed() -> None:
    watchdog = Watchdog(0.0, frozen_s=FROZEN_S, hang_s=HANG_S)
    assert watchdog.judge(sample(0.0)) is None
    watchdog.rest(1000.0)
    assert watchdog.judge(sample(1005.0)) is None
    assert watchdog.judge(sample(1035.0)) is None
    assert watchdog.judge(sample(1041.0)) is not None


async def test_a_server_that_never_answers_is_found_and_one_whose_client_is_slow_is_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "engine.sock"
    releases = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/body" in request:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhello")
        await releases.wait()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    connections = EngineConnections(path)
    idle = Activity(cpu_s=0.0, read_bytes=0, is_stopped=False)

    def activity() -> Activity:
        return idle

    # Its client has the head and does not ask for more: the engine owes nothing.
    response = await connections.request("POST", "/body")
    assert connections.awaited == 0
    assert connections.received_bytes > 0
    watching = asyncio.create_task(watch(connections, activity, frozen_s=0.2, hang_s=60.0))
    done, _ = await asyncio.wait({watching}, timeout=0.6)
    assert not done
    waiting = asyncio.create_task(connections.request("POST", "/nothing"))
    assert "It hangs" in await asyncio.wait_for(watching, 10)
    assert connections.awaited == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert connections.awaited == 0
    response.release()
    releases.set()
    server.close()


async def test_probes_are_not_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "engine.sock"
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()
        gone.set()

    server = await asyncio.start_unix_server(serve, path)
    connections = EngineConnections(path)
    assert await (await connections.request("GET", "/x", is_probe=True)).read() == b"ok"
    assert connections.received_bytes == 0
    # The same connection, now for somebody.
    assert await (await connections.request("GET", "/x")).read() == b"ok"
    assert connections.received_bytes > 0
    connections.close()
    await asyncio.wait_for(gone.wait(), 10)
    server.close()
