"""What all screens share: the client, the feed, the clock and how to draw."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tui.client.api import Client
from tui.client.feed import Feed
from tui.state.clock import Clock, SystemClock
from tui.state.connection import Link
from tui.text.glyphs import ASCII, UNICODE, Glyphs


@dataclass(kw_only=True)
class Session:
    """One run of the interface against one server."""

    make_client: Callable[[], Client]
    """May be slow (it imports the HTTP library), so it runs on a thread."""
    target: str
    clock: Clock = field(default_factory=SystemClock)
    readonly: bool = False
    ascii: bool = False
    feed: Feed = field(init=False)
    _client: Client | None = field(default=None, init=False)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        self.feed = Feed(self.client, self.clock)

    @property
    def glyphs(self) -> Glyphs:
        """The characters to draw with."""
        return ASCII if self.ascii else UNICODE

    @property
    def may_change(self) -> bool:
        """False where nothing on the server may be changed from here."""
        return not self.readonly and self.feed.connection.link is not Link.MISMATCH

    async def client(self) -> Client:
        """The client, made on first use."""
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self.make_client)
            return self._client

    async def aclose(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.aclose()
