"""The one task that reads the event stream and keeps the picture and the link up to date."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from appliance.protocol.base import API_VERSION
from appliance.protocol.events import DevicesSampled, SnapshotEvent
from tui.client.api import ApiError, Client, ClientError, Heard
from tui.state import connection as link
from tui.state.clock import Clock
from tui.state.connection import Connection, Link
from tui.state.history import History
from tui.state.view import View, apply
from tui.text.sanitize import sanitize_line

logger = logging.getLogger(__name__)

_REFUSALS = frozenset({401, 403})


class Feed:
    """Owns the picture: `view`, `connection` and the histories change only here.

    `on_change` is called after each change, on the event loop.
    """

    def __init__(
        self,
        open_client: Callable[[], Awaitable[Client]],
        clock: Clock,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._open_client = open_client
        self._clock = clock
        self._chance = chance
        self._retry = asyncio.Event()
        self.view = View()
        self.connection = Connection(since=clock.monotonic())
        self.requests = History()
        self.tokens = History()
        self.on_change: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Follow the server until cancelled."""
        while True:
            try:
                await self._follow()
                self._lost("the server closed the event stream", "")
            except ApiError as error:
                self._answered(error)
            except ClientError as error:
                self._lost(error.message, error.hint)
            except Exception as error:
                # The top of the worker: an error that escapes would end the whole interface.
                logger.exception("feed.failed")
                self._lost(sanitize_line(f"{type(error).__name__}: {error}"), "")
            await self._pause()
            self._set(link.retrying(self.connection, self._clock.monotonic()))

    def retry(self) -> None:
        """Try again now instead of later."""
        self._retry.set()

    def tick(self) -> None:
        """Let time pass: a silent link becomes stale."""
        changed = link.tick(self.connection, self._clock.monotonic())
        if changed is not self.connection:
            self._set(changed)

    def take(self, heard: Heard) -> None:
        """Apply one message of the stream."""
        now = self._clock.monotonic()
        if heard.event is not None:
            self.view = apply(self.view, heard.event, heard.seq)
            if isinstance(heard.event, SnapshotEvent | DevicesSampled):
                self.requests.add(now, self.view.totals.requests_per_s)
                self.tokens.add(now, self.view.totals.tokens_per_s)
        server = self.view.server
        if server is not None and server.api_version != API_VERSION:
            self.connection = link.mismatched(
                self.connection,
                now,
                f"The server speaks version {server.api_version} of the management API, "
                f"this terminal UI version {API_VERSION}.",
                "Use the terminal UI that was installed with the server; until then look only.",
            )
        else:
            self.connection = link.heard(self.connection, now)
        self.on_change()

    async def _follow(self) -> None:
        client = await self._open_client()
        async for heard in client.events(self.view.seq):
            self.take(heard)

    def _answered(self, error: ApiError) -> None:
        if error.status not in _REFUSALS:
            self._lost(error.message, error.hint)
            return
        hint = error.hint or "Give a key with APPLIANCE_API_KEY or --key-file."
        now = self._clock.monotonic()
        self._set(link.refused(self.connection, now, error=error.message, hint=hint))

    def _lost(self, error: str, hint: str) -> None:
        now = self._clock.monotonic()
        self._set(link.failed(self.connection, now, error=error, hint=hint, chance=self._chance()))

    async def _pause(self) -> None:
        self._retry.clear()
        if self.connection.link is Link.UNAUTHORISED:
            await self._retry.wait()
            return
        retry_at = self.connection.retry_at or 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, retry_at - self._clock.monotonic())):
                await self._retry.wait()

    def _set(self, connection: Connection) -> None:
        self.connection = connection
        self.on_change()
