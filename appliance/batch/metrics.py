"""What an engine says about its own queue (vLLM's Prometheus figures)."""

import asyncio

from appliance.batch.window import Load
from appliance.engine.connection import ConnectionLostError, EngineConnections

_RUNNING = b"vllm:num_requests_running"
_WAITING = b"vllm:num_requests_waiting"
_CACHE = b"vllm:kv_cache_usage_perc"
_ANSWER_S = 2.0


async def engine_load(connections: EngineConnections) -> Load | None:
    """Its figures, None if it does not give them in time."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            answer = await connections.request("GET", "/metrics", is_probe=True)
            return parse_load(await answer.read())
    except (OSError, TimeoutError, ConnectionLostError):
        return None


def parse_load(text: bytes) -> Load | None:
    """From the text format; None if a figure is missing."""
    found = {name: _sum(text, name) for name in (_RUNNING, _WAITING, _CACHE)}
    if found[_RUNNING] is None or found[_WAITING] is None:
        return None
    return Load(
        running=int(found[_RUNNING] or 0),
        waiting=int(found[_WAITING] or 0),
        kv_cache_ratio=found[_CACHE] or 0.0,
    )


def _sum(text: bytes, name: bytes) -> float | None:
    """Of all samples of exactly that name: `name{labels} value`."""
    values = [
        float(line.rsplit(b" ", 1)[1])
        for line in text.splitlines()
        if line.startswith((name + b"{", name + b" "))
    ]
    return sum(values) if values else None
