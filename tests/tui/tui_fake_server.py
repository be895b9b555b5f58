"""A small server on a unix socket that speaks the management API; for pty tests and for looking.

Run `python tests/tui/tui_fake_server.py SOCKET [busy|idle|hostile]`.
"""

import asyncio
import random
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import tui_scenes as scenes

from appliance.protocol.engines import LogMatch, LogMatches, LogWindow
from appliance.protocol.events import DevicesSampled, Event, ModelChanged, SnapshotEvent
from appliance.protocol.system import ErrorBody, ErrorDetail, Snapshot, Totals

HOSTILE = "\x1b]0;OWNED\x07\x1b[31mred\x1b[2J\x9b5m\x1bP1$r\x1b\\\x1b]52;c;aGk=\x07[bold]\u202egnp"


class FakeServer:
    """One scene, played to every client."""

    def __init__(self, scene: str = "idle") -> None:
        self.scene = scene
        self.snapshot = self._snapshot()
        self.heartbeat_s = 5.0
        self.requests: list[str] = []
        self._server: asyncio.Server | None = None
        self._chance = random.Random(7)

    async def start(self, path: str) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    def _snapshot(self) -> Snapshot:
        if self.scene != "hostile":
            return scenes.snapshot()
        evil = scenes.frozen_model(
            f"evil{HOSTILE}", scenes.EngineState.FAILED, failure=msgspec.structs.replace(
                scenes.FAILURE, message=HOSTILE, hint=HOSTILE, last_lines=[HOSTILE]
            ), waits_for=HOSTILE,
        )  # fmt: skip
        alert = msgspec.structs.replace(scenes.ALERTS[1], message=HOSTILE, hint=HOSTILE)
        server = msgspec.structs.replace(scenes.SERVER, host=f"box{HOSTILE}")
        devices = [scenes.device(0, 30, (f"evil{HOSTILE}", 20, 5), name=HOSTILE)]
        return scenes.snapshot(models=[evil], alerts=[alert], server=server, devices=devices)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split(" ", 2)
                while (await reader.readline()).strip():
                    pass
                self.requests.append(f"{method} {target}")
                if not await self._answer(method, target, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, method: str, target: str, writer: asyncio.StreamWriter) -> bool:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        if parts.path == "/admin/v1/events":
            await self._events(writer)
            return False
        if parts.path.endswith("/logs") and query.get("follow"):
            await self._follow(writer, int(query.get("tail", ["200"])[0]))
            return False
        status, body = self._body(method, parts.path, query)
        data = msgspec.json.encode(body)
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return True

    def _body(self, method: str, path: str, query: dict[str, list[str]]) -> tuple[int, object]:
        if path == "/admin/v1/state":
            return 200, self.snapshot
        if path == "/admin/v1/engines":
            return 200, self.snapshot.engines
        if path.endswith("/plan"):
            return 200, scenes.PLAN
        if path.endswith("/load") and "phi4" in path:
            return 202, self.snapshot.models[-1]
        if path.endswith("/logs"):
            first = int(query.get("from", ["1"])[0])
            if "before" in query:
                before, count = int(query["before"][0]), int(query["tail"][0])
                if "grep" in query:
                    return 200, self._matches(query["grep"][0].lower(), before)
                first = max(1, before - count)
                return 200, self._window(first, self._log()[first - 1 : before - 1])
            return 200, self._window(first, self._log()[first - 1 : first + 199])
        detail = ErrorDetail(code="no_room", message="There is no room.", hint="Unload one.")
        return 409, ErrorBody(error=detail)

    def _log(self) -> list[str]:
        return [HOSTILE, *scenes.LOG[:50], HOSTILE] if self.scene == "hostile" else scenes.LOG

    def _matches(self, text: str, before: int) -> LogMatches:
        lines = enumerate(self._log()[: before - 1], start=1)
        return LogMatches(
            engine_id="eng_x", model="x", total_lines=3000,
            matches=[LogMatch(line=n, text=line) for n, line in lines if text in line.lower()],
            scanned_from=1, scanned_to=before, is_complete=True,
        )  # fmt: skip

    def _window(self, first: int, lines: list[str]) -> LogWindow:
        return LogWindow(
            engine_id="eng_x", model="x", first_line=first, total_lines=3000, lines=lines
        )

    async def _events(self, writer: asyncio.StreamWriter) -> None:
        self._stream_head(writer)
        self._send(writer, SnapshotEvent(snapshot=self.snapshot), self.snapshot.seq)
        seq, ticks = self.snapshot.seq, 0
        while True:
            await writer.drain()
            await asyncio.sleep(1.0 if self.scene == "busy" else self.heartbeat_s)
            ticks += 1
            if self.scene != "busy":
                writer.write(b": heartbeat\n\n")
                continue
            for event in self._busy(ticks):
                seq += 1
                self._send(writer, event, seq)

    def _busy(self, ticks: int) -> list[Event]:
        rate = 2800 + self._chance.randrange(400)
        devices = [
            msgspec.structs.replace(
                d,
                utilization_ratio=self._chance.random(),
                power_w=600 + self._chance.random() * 60,
            )
            for d in self.snapshot.devices
        ]
        progress = msgspec.structs.replace(
            scenes.GEMMA.progress, ratio=min(1.0, 0.3 + ticks / 60), eta_s=max(0.0, 60.0 - ticks)
        )
        return [
            DevicesSampled(
                devices=devices, totals=Totals(requests_per_s=12 + ticks % 7, tokens_per_s=rate)
            ),
            ModelChanged(model=msgspec.structs.replace(scenes.QWEN, tokens_per_s=float(rate))),
            ModelChanged(model=msgspec.structs.replace(scenes.GEMMA, progress=progress)),
        ]

    async def _follow(self, writer: asyncio.StreamWriter, tail: int) -> None:
        self._stream_head(writer)
        log = self._log()
        first = max(1, len(log) - tail + 1)
        self._data(writer, self._window(first, log[first - 1 :]))
        line = len(log)
        while True:
            await writer.drain()
            await asyncio.sleep(0.5)
            if self.scene != "busy":
                writer.write(b": heartbeat\n\n")
                continue
            lines = [f"INFO 03-14 12:50:00 [core.py:1] line {line + 1 + i}" for i in range(10)]
            self._data(writer, self._window(line + 1, lines))
            line += 10

    def _stream_head(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")

    def _send(self, writer: asyncio.StreamWriter, event: Event, seq: int) -> None:
        writer.write(f"id: {seq}\n".encode())
        self._data(writer, event)

    def _data(self, writer: asyncio.StreamWriter, body: object) -> None:
        writer.write(b"data: " + msgspec.json.encode(body) + b"\n\n")


async def _main(path: str, scene: str) -> None:
    await FakeServer(scene).start(path)
    await asyncio.Event().wait()


if __name__ == "__main__":
    Path(sys.argv[1]).unlink(missing_ok=True)
    asyncio.run(_main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "busy"))
