"""A cgroup (v2) of a test's own, which stands for one that is delegated to a server."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.engine.cgroup import end_cgroup, own_cgroup


@contextmanager
def delegated_cgroup() -> Iterator[Path]:
    """Made below our own, and removed with all that is in it; skips where that is not allowed."""
    home = own_cgroup(Path("/proc"))
    path = None if home is None else home / f"appliance-test-{secrets.token_hex(4)}"
    try:
        assert path is not None
        path.mkdir()
    except (OSError, AssertionError):
        pytest.skip("needs a cgroup v2 hierarchy that this user may write to")
    yield path
    for child in path.iterdir():
        if child.is_dir():
            end_cgroup(child)
    assert end_cgroup(path)
