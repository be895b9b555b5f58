"""The client interface in process, with a frozen clock."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import tui_scenes as scenes

from appliance.protocol.batches import BatchProgress, LineFailure
from appliance.protocol.engines import Engine, LogMatch, LogMatches, LogWindow
from appliance.protocol.events import Event, SnapshotEvent
from appliance.protocol.models import Model
from appliance.protocol.placement import PlanVerdict
from appliance.protocol.system import Snapshot
from tui.app import ApplianceApp
from tui.client.api import ApiError, ClientError, Heard
from tui.client.session import Session


class FrozenClock:
    """Stands still until told to go on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return scenes.NOW + timedelta(seconds=self.seconds - 1000.0)

    def local(self, moment: datetime) -> datetime:
        return moment.astimezone(UTC)


class FakeClient:
    """Answers from a snapshot; remembers what was asked."""

    def __init__(self, snapshot: Snapshot | None, log: list[str] | None = None) -> None:
        self.snapshot = snapshot
        self.log = scenes.LOG if log is None else log
        self.dropped = range(0)
        """Numbers of lines that are no longer kept."""
        self.step = 1000
        """Lines that one search looks at."""
        self.log_engines: list[str] = []
        """Whose log was read."""
        self.calls: list[tuple[str, str]] = []
        self.plan_verdict: PlanVerdict = scenes.PLAN
        self.error: ClientError | None = None
        self.pieces = [b'{"id": 1}\n', b'{"id": 2}\n']
        """Of any file of batches."""
        self.cut_off: ClientError | None = None
        """How the content of a file ends early."""
        self.stream_error: ClientError | None = None
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self.log_inbox: asyncio.Queue[LogWindow | None] = asyncio.Queue()

    async def state(self) -> Snapshot:
        assert self.snapshot is not None
        return self.snapshot

    async def events(self, since: int | None) -> AsyncIterator[Heard]:
        if self.stream_error is not None:
            raise self.stream_error
        if self.snapshot is None:
            await asyncio.Event().wait()
            return
        seq = self.snapshot.seq
        yield Heard(SnapshotEvent(snapshot=self.snapshot), seq)
        while True:
            event = await self.inbox.get()
            seq += 1
            yield Heard(event, seq)

    async def plan(self, model: str) -> PlanVerdict:
        return self._called("plan", model) or self.plan_verdict

    async def load(self, model: str) -> Model:
        return self._called("load", model) or self._model(model)

    async def unload(self, model: str) -> Model:
        return self._called("unload", model) or self._model(model)

    async def act_on_batch(self, batch_id: str, action: str) -> BatchProgress:
        self._called(action, batch_id)
        assert self.snapshot is not None
        return next(each for each in self.snapshot.batches if each.batch.id == batch_id)

    async def retry_batch(self, batch_id: str) -> BatchProgress:
        self._called("retry", batch_id)
        return scenes.AGAIN

    async def file_content(self, file_id: str) -> AsyncIterator[bytes]:
        self._called("file_content", file_id)
        for piece in self.pieces:
            yield piece
        if self.cut_off is not None:
            raise self.cut_off

    async def batch_failures(self, batch_id: str) -> list[LineFailure]:
        self._called("batch_failures", batch_id)
        return scenes.LINE_FAILURES

    async def engines(self) -> list[Engine]:
        assert self.snapshot is not None
        return self.snapshot.engines

    async def log_window(self, engine: str, first_line: int, count: int) -> LogWindow:
        self.log_engines.append(engine)
        self.calls.append(("log_window", f"{first_line}+{count}"))
        lines = self.log[first_line - 1 : first_line - 1 + count]
        return self._window(engine, first_line, lines)

    async def log_before(self, engine: str, before: int, count: int) -> LogWindow:
        self.calls.append(("log_before", f"{before}-{count}"))
        return self._window_before(engine, before, count)

    async def search_log(self, engine: str, text: str, before: int, count: int) -> LogMatches:
        self.calls.append(("search_log", f"{text} {before}-{count}"))
        first = max(1, before - self.step)
        kept = [number for number in range(first, before) if number not in self.dropped]
        found = [number for number in kept if text.lower() in self.log[number - 1].lower()]
        return LogMatches(
            engine_id=engine,
            model=engine.removeprefix("eng_"),
            total_lines=len(self.log),
            matches=[LogMatch(line=number, text=self.log[number - 1]) for number in found],
            scanned_from=first,
            scanned_to=before,
            is_complete=first == 1,
            skipped=before - first - len(kept),
        )

    async def follow_log(self, engine: str, tail: int) -> AsyncIterator[LogWindow | None]:
        self.log_engines.append(engine)
        if engine == "eng_none":
            raise ApiError("no such engine", "It was dropped.", status=404)
        yield self._window_before(engine, len(self.log) + 1, tail)
        while True:
            yield await self.log_inbox.get()

    async def aclose(self) -> None:
        self.calls.append(("aclose", ""))

    def _called(self, call: str, model: str) -> None:
        self.calls.append((call, model))
        if self.error is not None:
            raise self.error

    def _model(self, name: str) -> Model:
        assert self.snapshot is not None
        return next(model for model in self.snapshot.models if model.id == name)

    def _window_before(self, engine: str, before: int, count: int) -> LogWindow:
        if before - 1 in self.dropped:
            before = self.dropped.start
        first, skipped = max(1, before - count), 0
        if self.dropped and first < self.dropped.stop <= before:
            first, skipped = self.dropped.stop, len(self.dropped)
        return self._window(engine, first, self.log[first - 1 : before - 1], skipped)

    def _window(self, engine: str, first: int, lines: list[str], skipped: int = 0) -> LogWindow:
        return LogWindow(
            engine_id=engine,
            model=engine.removeprefix("eng_"),
            first_line=first,
            total_lines=len(self.log),
            lines=lines,
            skipped=skipped,
        )


def make_app(
    client: FakeClient, *, readonly: bool = False, is_ascii: bool = False, theme: str = "appliance"
) -> ApplianceApp:
    session = Session(
        make_client=lambda: client,
        target="/run/vllm-appliance/admin.sock",
        clock=FrozenClock(),
        readonly=readonly,
        ascii=is_ascii,
    )
    app = ApplianceApp(session, theme=theme)
    app.PAINT_S = 0.0
    return app
