"""Readiness of an engine: healthy, and serving the name that we gave it."""

import asyncio

import msgspec

from appliance.engine.connection import ConnectionLostError, EngineConnections

_PROBE_S = 5.0


class _ServedModel(msgspec.Struct):
    id: str


class _ServedModels(msgspec.Struct):
    data: list[_ServedModel]


async def is_ready(connections: EngineConnections, model: str) -> bool:
    """Whether the engine answers and serves `model`; an engine that is not there yet is False."""
    try:
        async with asyncio.timeout(_PROBE_S):
            health = await connections.request("GET", "/health", is_probe=True)
            await health.read()
            if health.status != 200:
                return False
            listing = await connections.request("GET", "/v1/models", is_probe=True)
            served = msgspec.json.decode(await listing.read(), type=_ServedModels)
    except (OSError, TimeoutError, ConnectionLostError, msgspec.MsgspecError):
        return False
    return any(entry.id == model for entry in served.data)
