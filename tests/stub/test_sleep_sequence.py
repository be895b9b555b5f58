"""Sleep and wake of one engine: the stub has vLLM's endpoints, memory and faults."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.engine.connection import EngineConnections
from appliance.engine.proctree import proportional_bytes
from appliance.engine.sleep import EngineSleep, SleepError, SleepFault
from appliance.protocol.models import Task
from appliance.protocol.sleep import SleepLevel
from tests.stub.conftest import MIB, STUB
from tests.support.wait import wait_until_async

WEIGHTS, KV_CACHE = 24 * MIB, 40 * MIB


class Engine:
    def __init__(self, process: "subprocess.Popen[bytes]", socket: Path, limit_s: float) -> None:
        self.process = process
        self.connections = EngineConnections(socket)
        self.sleep = EngineSleep(
            self.connections,
            model="m",
            task=Task.GENERATE,
            vllm_version="0.0.0",
            weights_bytes=WEIGHTS,
            kv_cache_bytes=KV_CACHE,
            limit_s=limit_s,
        )

    async def measure(self) -> int:
        return proportional_bytes(self.process.pid)

    async def post(self, path: str, **body: object) -> tuple[int, dict[str, object]]:
        response = await self.connections.request("POST", path, body=json.dumps(body).encode())
        text = await response.read()
        return response.status, json.loads(text) if text else {}

    async def say(self) -> tuple[str, str]:
        _, answer = await self.post("/v1/completions", model="m", max_tokens=3)
        choice = answer["choices"][0]  # type: ignore[index]
        return choice["text"], choice["finish_reason"]

    async def is_sleeping(self) -> bool:
        response = await self.connections.request("GET", "/is_sleeping")
        return bool(json.loads(await response.read())["is_sleeping"])


def start(directory: Path, socket: Path, flags: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            sys.executable, str(STUB), "--model", str(directory), "--served-model-name", "m",
            "--uds", str(socket), *flags,
        ],
        env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


@asynccontextmanager
async def engine(
    directory: Path,
    *,
    fault: str = "",
    limit_s: float = 10.0,
    flags: tuple[str, ...] = ("--enable-sleep-mode",),
    token_s: float = 0.001,
) -> AsyncIterator[Engine]:
    behaviour = {
        "weights_bytes": WEIGHTS,
        "kv_bytes": KV_CACHE,
        "sleep_fault": fault,
        "token_s": token_s,
        "load_s": 0.0,
    }
    (directory / "stub.json").write_text(json.dumps(behaviour))
    socket = directory / "s"
    process = start(directory, socket, flags)

    async def is_there() -> bool:
        return socket.exists()

    made = Engine(process, socket, limit_s)
    try:
        await wait_until_async(is_there)
        yield made
    finally:
        made.connections.close()
        os.killpg(process.pid, 9)
        process.wait()


@pytest.mark.parametrize("level", [1, 2])
async def test_an_engine_gives_its_memory_back_and_says_the_same_afterwards(
    tmp_path: Path, level: SleepLevel
) -> None:
    async with engine(tmp_path) as made:
        for _ in range(2):
            await made.sleep.fall_asleep(level, made.measure)
            assert await made.is_sleeping()
            await made.sleep.wake()
            assert await made.say() == ("xxx", "stop")
        verdict = made.sleep.verdict(None)
    assert verdict.works
    assert verdict.level == level
    assert verdict.freed_bytes >= 0.9 * (WEIGHTS + KV_CACHE)
    assert 0 < verdict.residue_bytes < KV_CACHE
    assert verdict.host_bytes == (WEIGHTS if level == 1 else 0)
    assert verdict.sleep_s is not None
    assert verdict.wake_s is not None


async def test_without_its_own_sequence_a_level_2_wake_is_garbage(tmp_path: Path) -> None:
    """What the sequence is for: vLLM says nothing of it."""
    async with engine(tmp_path) as made:
        await made.sleep.fall_asleep(2, made.measure)
        assert await made.post("/wake_up") == (200, {"status": "awake", "tags": None})
        assert await made.say() == ("!!!", "stop")


async def test_requests_are_ended_by_a_plain_sleep_and_wait_while_it_lasts(tmp_path: Path) -> None:
    """vLLM's rules, which the appliance has to work around."""
    async with engine(tmp_path, token_s=60.0) as made:
        running = asyncio.create_task(made.say())

        async def is_running() -> bool:
            response = await made.connections.request("GET", "/metrics", is_probe=True)
            return b'running{engine="0"} 1' in await response.read()

        await wait_until_async(is_running)
        assert await made.post("/sleep?level=1") == (200, {"status": "sleeping", "level": 1})
        assert await running == ("", "abort")
        waiting = asyncio.create_task(made.say())
        await wait_until_async(is_running)
        assert not waiting.done()
        assert (await made.post("/wake_up?tags=weights"))[1]["status"] == "sleeping"
        # Nothing of it is asleep, so vLLM leaves the whole call out.
        assert (await made.post("/wake_up?tags=weights&tags=kv_cache"))[1]["status"] == "sleeping"
        assert not waiting.done()
        assert (await made.post("/wake_up?tags=kv_cache"))[1]["status"] == "awake"
        waiting.cancel()


async def test_nothing_sleeps_while_a_request_is_in_flight(tmp_path: Path) -> None:
    async with engine(tmp_path, token_s=0.3) as made:
        running = asyncio.create_task(made.say())

        async def is_awaited() -> bool:
            return made.connections.awaited > 0

        await wait_until_async(is_awaited)
        with pytest.raises(SleepError) as caught:
            await made.sleep.fall_asleep(1, made.measure)
        assert caught.value.fault is SleepFault.BUSY
        assert await running == ("xxx", "stop")


@pytest.mark.parametrize(
    ("fault", "level", "expected"),
    [
        ("keeps", 1, SleepFault.NOT_FREED),
        ("keeps", 2, SleepFault.NOT_FREED),
        ("hangs at /sleep", 1, SleepFault.HUNG),
        ("500 at /sleep", 1, SleepFault.REFUSED),
        ("dies at /sleep", 2, SleepFault.LOST),
    ],
)
async def test_a_sleep_that_fails_says_how(
    tmp_path: Path, fault: str, level: SleepLevel, expected: SleepFault
) -> None:
    async with engine(tmp_path, fault=fault, limit_s=1.0) as made:
        with pytest.raises(SleepError) as caught:
            await made.sleep.fall_asleep(level, made.measure)
        assert caught.value.fault is expected
        verdict = made.sleep.verdict(caught.value)
        assert not verdict.works
        assert verdict.reason


@pytest.mark.parametrize(
    ("fault", "level", "expected"),
    [
        ("garbage", 1, SleepFault.GARBAGE),
        ("garbage", 2, SleepFault.GARBAGE),
        ("hangs at /wake_up", 1, SleepFault.HUNG),
        ("hangs at /collective_rpc", 2, SleepFault.HUNG),
        ("500 at /wake_up", 1, SleepFault.REFUSED),
        ("500 at /collective_rpc", 2, SleepFault.REFUSED),
        ("dies at /wake_up", 1, SleepFault.LOST),
        ("dies at /wake_up", 2, SleepFault.LOST),
    ],
)
async def test_a_wake_that_fails_says_how(
    tmp_path: Path, fault: str, level: SleepLevel, expected: SleepFault
) -> None:
    async with engine(tmp_path, fault=fault, limit_s=1.0) as made:
        await made.sleep.fall_asleep(level, made.measure)
        with pytest.raises(SleepError) as caught:
            await made.sleep.wake()
        assert caught.value.fault is expected


async def test_an_engine_without_sleep_mode_is_found_out_by_its_memory(tmp_path: Path) -> None:
    """Its endpoints say yes to everything, as on the CPU."""
    async with engine(tmp_path, flags=(), limit_s=1.0) as made:
        with pytest.raises(SleepError) as caught:
            await made.sleep.fall_asleep(1, made.measure)
        assert caught.value.fault is SleepFault.NOT_FREED
