"""Batches in process: the real store, files and runner, a pretended engine, clocks to be set."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from appliance.batch.clock import Clock
from appliance.batch.files import FileStore
from appliance.batch.index import Limits
from appliance.batch.runner import BatchRunner
from appliance.batch.service import BatchService, CreateBatch
from appliance.engine.connection import ConnectionLostError
from appliance.protocol.batches import Batch
from appliance.protocol.files import File
from appliance.protocol.models import Task
from appliance.slots.scheduler import SlotScheduler
from appliance.slots.slot import Priority
from appliance.store.database import Database
from tests.support.wait import wait_until_async

CHAT = "/v1/chat/completions"
FINAL_S = 30.0

Serve = Callable[[str, dict[str, Any]], Awaitable[tuple[int, bytes]]]


async def say(text: str) -> tuple[int, bytes]:
    """An answer of a chat model."""
    body = {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return 200, json.dumps(body).encode()


async def echo(_: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """What was said comes back; "bad" in it is refused."""
    text = body["messages"][0]["content"]
    if "bad" in text:
        return 400, b'{"error":{"message":"no","type":"BadRequestError","code":400}}'
    return await say(text)


def chat_line(custom_id: str, model: str = "a", text: str | None = None) -> dict[str, Any]:
    """A line of the input."""
    content = custom_id if text is None else text
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def jsonl(lines: Sequence[dict[str, Any]]) -> bytes:
    """A file of them."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class FakeClock:
    """Both clocks; the test sets them."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.steady = 50.0

    def pass_by(self, seconds: float) -> None:
        """Both go on."""
        self.wall += seconds
        self.steady += seconds

    def clock(self) -> Clock:
        """For the product."""
        return Clock(wall=lambda: self.wall, steady=lambda: self.steady)


class _Response:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    async def read(self) -> bytes:
        return self._body


class _Running:
    def __init__(self) -> None:
        self.is_leaving = False
        self.task = asyncio.get_running_loop().create_future()
        self.task.set_result(None)


class FakeSlots:
    """Engines that are always ready; what they answer is a function."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.asked: list[str] = []
        self.leases: list[str] = []
        self.deaths = self.excused = 0

    def is_ready(self, model: str) -> bool:
        return True

    def has_people(self, model: str) -> bool:
        return False

    def connections(self, model: str) -> None:
        return None

    @property
    def batches(self) -> "FakeSlots":
        return self

    @contextmanager
    def ahead(self, model: str) -> Iterator[None]:
        yield

    def excuse(self, model: str, failures: int) -> None:
        self.excused += failures

    @asynccontextmanager
    async def lease(self, model: str, priority: Priority) -> AsyncIterator[Any]:
        assert priority is Priority.BATCH
        self.leases.append(model)
        yield _FakeLease(self, model)


class _FakeLease:
    failure = None
    has_priorities = True

    def __init__(self, slots: FakeSlots, model: str) -> None:
        self._slots = slots
        self.model = model
        self.engine_id = f"engine {slots.deaths}"
        self.running = _Running()
        self.connections = self

    async def request(self, method: str, path: str, **given: Any) -> _Response:
        assert method == "POST"
        self._slots.asked.append(path)
        try:
            return _Response(*await self._slots.serve(path, json.loads(given["body"])))
        except ConnectionLostError:
            self._slots.deaths += 1
            raise


class World:
    """Everything of one appliance that batches need; two after each other are a restart."""

    def __init__(
        self,
        home: Path,
        *,
        serve: Serve = echo,
        time: FakeClock | None = None,
        limits: Limits | None = None,
        models: dict[str, Task] | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        self.home = home
        self.time = time or FakeClock()
        clock = self.time.clock()
        self.models = {"a": Task.GENERATE, "b": Task.GENERATE} if models is None else models
        self.slots = FakeSlots(serve)
        home.mkdir(parents=True, exist_ok=True)
        self.database = Database(home / "appliance.db")
        self.files = FileStore(
            self.database,
            home / "files",
            most_bytes=2**24,
            reserve_bytes=reserve_bytes,
            clock=clock,
        )
        self.runner = BatchRunner(
            database=self.database,
            files=self.files,
            slots=cast(SlotScheduler, self.slots),
            directory=home / "batches",
            task_of=self.models.get,
            limits=limits or Limits(lines=1000, line_bytes=2**20),
            concurrency=16,
            on_change=lambda _: None,
            clock=clock,
        )
        self.service = BatchService(self.database, self.files, self.runner, clock)

    async def __aenter__(self) -> "World":
        await self.database.open()
        await self.files.open()
        await self.runner.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.stop()
        await self.database.close()

    async def upload(self, content: bytes) -> File:
        """A file for a batch."""
        async with await self.files.upload(len(content)) as upload:
            await upload.write(content)
            await upload.close()
            return await self.files.keep(
                upload.part, filename="in.jsonl", purpose="batch", expires_after_s=None
            )

    async def submit(self, content: bytes, **given: Any) -> Batch:
        """A batch over it."""
        file = await self.upload(content)
        wanted = {"endpoint": CHAT, "completion_window": "24h", **given}
        return await self.service.create(CreateBatch(input_file_id=file.id, **wanted))

    async def ended(self, batch_id: str) -> Batch:
        """The batch, once it is over."""

        async def is_over() -> Batch | None:
            batch = await self.service.find(batch_id)
            return batch if batch.status.is_final else None

        batch = await wait_until_async(is_over, FINAL_S, "batch over")
        assert batch is not None
        return batch

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait for something that is seen from outside."""

        async def holds() -> bool:
            return bool(condition())

        await wait_until_async(holds, FINAL_S, what)

    def lines(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """Results of a file by custom_id; none is there twice."""
        if file_id is None:
            return {}
        text = self.files.path(file_id).read_bytes()
        assert text.endswith(b"\n")
        found = [json.loads(line) for line in text[:-1].split(b"\n")]
        by_id = {line["custom_id"]: line for line in found}
        assert len(by_id) == len(found)
        return by_id


DAY_S = 86400


def many(count: int, **given: Any) -> bytes:
    """A file of requests r0, r1 and so on."""
    return jsonl([chat_line(f"r{n}", **given) for n in range(count)])


class Gate:
    """Answers once it is open; the first ones at once."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        self.asked += 1
        if self.asked > self.first:
            await self.go.wait()
        return await echo(path, body)
