"""Reading one engine's log: follow its end, fetch older pages, look through them."""

import asyncio
from collections.abc import Awaitable, Callable

from appliance.protocol.engines import LogMatches, LogWindow
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
        window = await client.log_before(engine, before, PAGE)
        if not window.lines or not take(window):
            return
        before = window.first_line


async def earlier_matches(
    client: Client, engine: str, text: str, first_known: int, take: Callable[[LogMatches], int]
) -> None:
    """Look through the lines before `first_known` until `take` took a page of matches."""
    before, taken = first_known, 0
    while before > 1 and taken < PAGE:
        found = await client.search_log(engine, text, before, PAGE)
        taken += take(found)
        if found.is_complete or found.scanned_from >= before:
            return
        before = found.scanned_from
