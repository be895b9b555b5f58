"""Batches without their pauses."""

import os

import pytest

from appliance.batch import feed, runner


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
