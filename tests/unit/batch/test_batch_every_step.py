"""The power goes at any step towards the disk; every line still ends once."""

import asyncio
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.protocol.batches import Batch, BatchStatus
from appliance.store.batches import files_page
from appliance.store.database import Database
from tests.support.batches import FakeClock, World, chat_line, echo, jsonl

# Files that nobody can close any more.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LINES = 24
ANSWERED = 10
BAD = 5
INPUT = jsonl([chat_line(f"r{n}", text="bad" if n < BAD else None) for n in range(LINES)])


class PowerCutError(BaseException):
    """Nothing of this process happens any more."""


class Power:
    """Goes off at the given step, and stays off; writes are torn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, off_at: int | None, seed: int) -> None:
        self.off_at = off_at
        self.steps = 0
        self.is_off = False
        self.cut = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        for name in ("fdatasync", "fsync", "ftruncate"):
            monkeypatch.setattr(os, name, self._around(getattr(os, name)))
        for name in ("rename", "unlink", "mkdir"):
            monkeypatch.setattr(Path, name, self._around(getattr(Path, name)))
        monkeypatch.setattr(Database, "_in_transaction", self._around(Database._in_transaction))
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.torn)

    def step(self) -> None:
        with self._lock:
            self.steps += 1
            self.is_off = self.is_off or self.steps == self.off_at
        if self.is_off:
            self._loop.call_soon_threadsafe(self.cut.set)
            raise PowerCutError

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*given: Any, **named: Any) -> Any:
            self.step()
            done = real(*given, **named)
            self.step()
            return done

        return guarded

    def torn(self, descriptor: int, data: bytes, at: int) -> int:
        try:
            self.step()
        except PowerCutError:
            if self.steps == self.off_at:
                part = bytes(data)[: self._random.randrange(len(data))]
                zeros = bytes(self._random.choice([0, 0, 10, 5000]))
                self._pwrite(descriptor, part + zeros, at)
            raise
        return self._pwrite(descriptor, data, at)


async def run_until_cut(world: World, power: Power, act: str) -> None:
    async def work() -> None:
        async with world:
            batch = await world.submit(INPUT)
            await asyncio.gather(world.ended(batch.id), asyncio.create_task(disturb(batch.id)))

    async def disturb(batch_id: str) -> None:
        if act == "complete":
            return
        run = world.runner.runs[batch_id]
        await world.until(lambda: run.done.completed or run.batch.status.is_final)
        if act == "cancel" and not run.batch.status.is_final:
            await world.service.cancel(batch_id)
        if act == "expire":
            world.time.pass_by(2 * 86400)

    task = asyncio.create_task(work())
    cutting = asyncio.create_task(power.cut.wait())
    await asyncio.wait({task, cutting}, return_when=asyncio.FIRST_COMPLETED)
    for each in (task, cutting):
        each.cancel()
    await asyncio.gather(task, cutting, return_exceptions=True)


async def never_ends(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """Most lines are never answered."""
    if body["messages"][0]["content"] not in {f"r{n}" for n in range(BAD, ANSWERED)}:
        await asyncio.Event().wait()
    return await echo(path, body)


def check(world: World, batch: Batch, act: str) -> None:
    output, errors = world.lines(batch.output_file_id), world.lines(batch.error_file_id)
    assert not output.keys() & errors.keys()
    assert output.keys() | errors.keys() == {f"r{n}" for n in range(LINES)}
    for custom_id, line in output.items():
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert said == custom_id
    refused = [line for line in errors.values() if line["response"] is not None]
    assert batch.request_counts.total == LINES
    assert batch.request_counts.completed == len(output)
    assert batch.request_counts.failed == len(refused)
    assert batch.usage is not None
    assert batch.usage.total_tokens == 5 * len(output)
    if act == "complete":
        assert batch.status is BatchStatus.COMPLETED
        assert (len(output), len(refused)) == (LINES - BAD, BAD)
    codes = {line["error"]["code"] for line in errors.values() if line["error"] is not None}
    assert codes <= {{"cancel": "batch_cancelled"}.get(act, "batch_expired")}


async def cut_the_power(
    directory: Path, monkeypatch: pytest.MonkeyPatch, act: str, first: int, stride: int
) -> int:
    """At every such step of a run; how many steps a run has."""
    off_at = first
    while True:
        home = directory / str(off_at)
        time = FakeClock()
        world = World(home, time=time, serve=echo if act == "complete" else never_ends)
        with monkeypatch.context() as patch:
            power = Power(patch, off_at, off_at)
            await run_until_cut(world, power, act)
        async with World(home, time=time) as world:
            for found in (await world.service.page(after=None, limit=9)).data:
                batch = await world.ended(found.id)
                check(world, batch, act)
                kept = await world.database.read(
                    lambda: files_page(after=None, limit=9, newest_first=True, purpose=None)
                )
                given = {batch.input_file_id, batch.output_file_id, batch.error_file_id}
                assert {file.id for file in kept or []} == given - {None}
                assert {file.name for file in (home / "files").iterdir()} == given - {None}
        async with World(home, time=time):
            assert not list((home / "batches").iterdir())
        if not power.is_off:
            return power.steps
        off_at += stride


# Together they are at every step of what they have in common.
@pytest.mark.parametrize(("act", "first"), [("complete", 1), ("cancel", 2), ("expire", 3)])
async def test_every_third_step_may_be_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, first: int
) -> None:
    assert await cut_the_power(tmp_path, monkeypatch, act, first, stride=3) > 40
