"""The one place where tests wait: for a condition, with a limit."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_EVERY_S = 0.02


def wait_until(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """The first true value of `condition`; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what or condition}"
        time.sleep(_EVERY_S)
    return value


async def wait_until_async(
    condition: Callable[[], Awaitable[T]], timeout_s: float = 10.0, what: str = ""
) -> T:
    """As `wait_until`, for a condition that is awaited."""
    deadline = time.monotonic() + timeout_s
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what or condition}"
        await asyncio.sleep(_EVERY_S)
    return value
