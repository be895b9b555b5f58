import asyncio
from pathlib import Path

import pytest

from appliance.slots import read_ahead
from appliance.slots.read_ahead import ReadAhead


async def test_each_model_is_read_once_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def read(directory: Path, stop: object) -> int:
        calls.append(directory)
        assert hasattr(stop, "wait")
        return int(stop.wait(10))

    monkeypatch.setattr(read_ahead, "prefetch", read)
    reads = ReadAhead()
    reads.begin("a", tmp_path / "a")
    reads.begin("a", tmp_path / "a")
    reads.begin("b", tmp_path / "b")
    reads.end("a")
    reads.end("unknown")
    async with asyncio.timeout(10):
        await reads.stop()
    assert sorted(calls) == [tmp_path / "a", tmp_path / "b"]
    # It may be read again.
    reads.begin("a", tmp_path / "a")
    await reads.stop()
    assert calls.count(tmp_path / "a") == 2
