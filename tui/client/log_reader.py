"""Reading one engine's log: follow its end, fetch older pages."""

import asyncio
from collections.abc import Awaitable, Callable

from appliance.protocol.engines import LogWindow
from tui.client.api import ApiError, Client, ClientError

TAIL = 2_000
PAGE = 1_000
_RETRY_S = 2.0
_GONE = 404


async def follow(
    open_client: Callable[[], Awaitable[Client]],
    engine: str,
    take: Callable[[LogWindow], None],
    note: Callable[[str], None],
    tail: int = TAIL,
) -> None:
    """Give each window to `take` until cancelled; problems go to `note` and are tried again."""
    while True:
        try:
            client = await open_client()
            async for window in client.follow_log(engine, tail):
                note("")
                if window is not None:
                    take(window)
            note("")
        except ApiError as error:
            note(f"{error.message} {error.hint}".strip())
            if error.status == _GONE:
                return
        except ClientError as error:
            note(f"{error.message}; trying again")
        await asyncio.sleep(_RETRY_S)


async def older_pages(
    client: Client, engine: str, first_known: int, wanted: int, take: Callable[[LogWindow], int]
) -> None:
    """Fetch pages before line `first_known` until line `wanted` came or `take` takes no more."""
    before = first_known
    while before > max(wanted, 1):
        start = max(1, before - PAGE)
        window = await client.log_window(engine, start, before - start)
        if not window.lines or not take(window):
            return
        before = window.first_line
