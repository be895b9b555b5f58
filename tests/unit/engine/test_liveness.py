import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.connection import EngineConnections
from appliance.engine.liveness import Metrics, Sample, Watchdog, watch
from appliance.engine.proctree import Activity
from appliance.units import MIB

FROZEN_S, HANG_S, LOOK_S = 40.0, 300.0, 5.0


def sample(
    at: float,
    *,
    progress: float | None = 1.0,
    work: float | None = 2.0,
    is_answered: bool = True,
    cpu_s: float = 0.0,
    read_bytes: int = 0,
    is_stopped: bool = False,
) -> Sample:
    return Sample(
        at=at,
        awaited=2,
        metrics=Metrics(is_answered=is_answered, progress=progress, work=work),
        activity=Activity(cpu_s=cpu_s, read_bytes=read_bytes, is_stopped=is_stopped),
    )


def new_watchdog() -> Watchdog:
    return Watchdog(frozen_s=FROZEN_S, hang_s=HANG_S, look_s=LOOK_S)


def first_verdict(make: Callable[[float], Sample], until: int = 1000) -> tuple[float, str] | None:
    watchdog = new_watchdog()
    for at in range(0, until, int(LOOK_S)):
        if verdict := watchdog.judge(make(float(at))):
            return float(at), verdict
    return None


def test_engine_that_does_nothing_for_those_who_wait_hangs() -> None:
    verdict = first_verdict(sample)
    assert verdict is not None
    assert verdict[0] == FROZEN_S
    assert "2 requests wait" in verdict[1]
    assert "do nothing" in verdict[1]


def test_engine_that_computes_is_given_more_time() -> None:
    verdict = first_verdict(lambda at: sample(at, cpu_s=at))
    assert verdict is not None
    assert verdict[0] == HANG_S
    assert "no progress" in verdict[1]


def test_engine_that_comes_back_from_swap_is_given_more_time() -> None:
    verdict = first_verdict(lambda at: sample(at, read_bytes=int(at) * MIB))
    assert verdict is not None
    assert verdict[0] == HANG_S


def test_engine_with_a_stopped_process_is_not_excused_by_another_that_spins() -> None:
    verdict = first_verdict(lambda at: sample(at, cpu_s=at, is_stopped=True))
    assert verdict is not None
    assert verdict[0] == FROZEN_S
    assert "stopped" in verdict[1]


def test_engine_whose_api_server_does_not_answer_either_hangs() -> None:
    verdict = first_verdict(lambda at: sample(at, is_answered=False, progress=None, work=None))
    assert verdict is not None
    assert verdict[0] == FROZEN_S


def test_a_picture_that_is_being_fetched_is_not_the_fault_of_the_core() -> None:
    # vLLM tries for 110 s by default; the core knows nothing of the request meanwhile.
    assert first_verdict(lambda at: sample(at, work=0.0), until=280) is None


def test_without_figures_of_the_core_a_long_answer_is_no_hang() -> None:
    assert first_verdict(lambda at: sample(at, progress=None, work=None, cpu_s=at)) is None


def test_chunks_of_a_long_prefill_are_progress() -> None:
    assert first_verdict(lambda at: sample(at, progress=at // 200, cpu_s=at)) is None


def test_a_machine_that_slept_has_not_waited() -> None:
    watchdog = new_watchdog()
    assert watchdog.judge(sample(0.0)) is None
    assert watchdog.judge(sample(5.0)) is None
    assert watchdog.judge(sample(3600.0)) is None


def test_the_clock_stops_while_nobody_waits_and_goes_on_after_that() -> None:
    watchdog = new_watchdog()
    at, verdict = 0.0, None
    for _ in range(10):
        # Clients that give up after ten seconds, again and again.
        for _ in range(3):
            verdict = verdict or watchdog.judge(sample(at))
            at += LOOK_S
        watchdog.pause()
    assert verdict is not None


@given(st.lists(st.floats(0.1, FROZEN_S - 0.1), min_size=1, max_size=50))
def test_engine_whose_counters_move_in_time_never_hangs(gaps: list[float]) -> None:
    watchdog, at = new_watchdog(), 0.0
    assert watchdog.judge(sample(at)) is None
    for number, gap in enumerate(gaps):
        at += gap
        assert watchdog.judge(sample(at, progress=float(number + 2))) is None


async def test_a_server_that_never_answers_is_found_and_one_whose_client_is_slow_is_not(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This one never answers a probe; how long that takes to see is not the matter here.
    monkeypatch.setattr("appliance.engine.liveness._METRICS_S", 0.1)
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
    # The same connection, now for somebody: the body counts, the head does not.
    assert await (await connections.request("GET", "/x")).read() == b"ok"
    assert connections.received_bytes == 2
    connections.close()
    await asyncio.wait_for(gone.wait(), 10)
    server.close()
