"""State, events, devices, health."""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import Controller, MediaType, Response, get
from litestar.datastructures import State
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream

from appliance.api.guards import admin_guard
from appliance.api.overview import Overview
from appliance.events import EventBus, iterate
from appliance.protocol.devices import Device
from appliance.protocol.events import SnapshotEvent
from appliance.protocol.system import Snapshot
from appliance.slots.board import SlotBoard

_HEARTBEAT_S = 5.0


class SystemController(Controller):
    """The machine and the server as a whole."""

    path = "/admin/v1"
    guards = [admin_guard]
    tags = ["system"]

    @get("/state", operation_id="getState")
    async def state(self, overview: Overview) -> Snapshot:
        """One snapshot of everything."""
        return overview.snapshot()

    @get("/devices", operation_id="listDevices")
    async def devices(self, board: SlotBoard) -> list[Device]:
        """The devices and what is on them."""
        return board.devices()

    @get("/events", operation_id="followEvents", media_type="text/event-stream")
    async def events(
        self,
        overview: Overview,
        bus: EventBus,
        since: Annotated[int | None, QueryParameter(description="Resume after this event.")] = None,
        last_event_id: Annotated[int | None, HeaderParameter(name="last-event-id")] = None,
    ) -> Stream:
        """Server-sent events: a snapshot, then changes; resumable."""
        resume = last_event_id if last_event_id is not None else since
        return Stream(
            _events(overview, bus, resume),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )


@get("/livez", media_type=MediaType.TEXT, include_in_schema=False)
async def livez() -> str:
    """The process answers."""
    return "ok\n"


@get("/", media_type=MediaType.TEXT, include_in_schema=False)
async def root() -> str:
    """For people who open the address in a browser."""
    return "vLLM Appliance is running. Its OpenAI-compatible endpoint is /v1.\n"


@get("/health", media_type=MediaType.TEXT, include_in_schema=False)
async def health() -> str:
    """As /livez, by the name that vLLM's own server uses."""
    return "ok\n"


@get("/readyz", media_type=MediaType.TEXT, include_in_schema=False)
async def readyz(state: State) -> Response[str]:
    """The server takes requests."""
    if state.is_ready():
        return Response("ok\n", media_type=MediaType.TEXT)
    return Response("not ready\n", status_code=503, media_type=MediaType.TEXT)


async def _events(overview: Overview, bus: EventBus, since: int | None) -> AsyncIterator[bytes]:
    # Subscribed before the snapshot is taken, so nothing falls between the two.
    subscription = bus.subscribe()
    try:
        missed = None if since is None else bus.since(since)
        if missed is None:
            snapshot = overview.snapshot()
            yield _message(snapshot.seq, SnapshotEvent(snapshot=snapshot))
        for seq, event in missed or []:
            yield _message(seq, event)
        async for item in iterate(subscription, _HEARTBEAT_S):
            yield b": heartbeat\n\n" if item is None else _message(*item)
    finally:
        bus.unsubscribe(subscription)


def _message(seq: int, event: object) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (seq, msgspec.json.encode(event))
