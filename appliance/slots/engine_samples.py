"""What engines are measured by: the memory of their processes, and their own counters."""

import asyncio
import time

from appliance.engine.connection import ConnectionLostError
from appliance.engine.proctree import proportional_bytes
from appliance.slots.slot import Running

_TOKENS = b"vllm:generation_tokens_total"
_SCRAPE_S = 2.0


def measure(running: Running) -> None:
    """Processes and their memory (blocks for some milliseconds)."""
    running.supervisor.note_oom_kills()
    pids = running.supervisor.pids()
    if pids:
        running.pids = frozenset(pids)
        running.supervisor.memory_bytes = sum(proportional_bytes(pid) for pid in pids)


def is_worth_scraping(running: Running) -> bool:
    """An engine without requests produces no tokens, once its rate has come down to zero."""
    return running.ready_since is not None and bool(running.in_flight or running.tokens_per_s)


async def scrape(running: Running) -> None:
    """Tokens per second from the engine's own counter."""
    try:
        async with asyncio.timeout(_SCRAPE_S):
            answer = await running.supervisor.connections.request("GET", "/metrics", is_probe=True)
            text = await answer.read()
    except (OSError, TimeoutError, ConnectionLostError):
        return
    total = sum(
        float(line.rsplit(b" ", 1)[1]) for line in text.splitlines() if line.startswith(_TOKENS)
    )
    now = time.monotonic()
    if running.tokens_total is not None and now > running.tokens_at:
        rate = (total - running.tokens_total) / (now - running.tokens_at)
        running.tokens_per_s = round(max(rate, 0.0), 1)
    running.tokens_total, running.tokens_at = total, now
