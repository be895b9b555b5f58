"""Batches without their pauses."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.batch import feed, runner
from tests.support.batch_client import BatchClient
from tests.support.batches import World


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (runner, "_WRITE_EVERY_S"),
        (runner, "_DISK_PAUSE_S"),
        (runner, "_GRACE_S"),
        (feed, "_SERVER_ERROR_PAUSE_S"),
        (feed, "_LOOK_S"),
    ):
        monkeypatch.setattr(module, name, 0.02)


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls is what tests look at."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world
        left = [each.name for each in (tmp_path / "files").iterdir()]
        assert not [name for name in left if name.endswith(".part")]


@pytest.fixture
def client(world: World) -> BatchClient:
    return BatchClient(world)
