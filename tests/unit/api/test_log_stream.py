"""What a follower of a log gets: first from the file, then live, without gap or duplicate."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from appliance.api.engines import _follow, _follow_matches
from appliance.engine.log_search import LogFilter
from appliance.engine.logs import EngineLog
from appliance.protocol.engines import LogMatches, LogWindow

T = TypeVar("T")


def say(log: EngineLog, first: int, last: int) -> None:
    """The engine prints lines; each fifth is loud."""
    lines = [f"{'loud' if line % 5 == 0 else 'line'} {line}" for line in range(first, last + 1)]
    assert log.append([line.encode() for line in lines]) == first
    log.deliver(first, lines)


async def messages(stream: AsyncIterator[bytes], kind: type[T]) -> AsyncIterator[T]:
    async for message in stream:
        assert message.startswith(b"data: ")
        yield msgspec.json.decode(message[6:], type=kind)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EngineLog]:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m", limit_bytes=8000)
    say(log, 1, 20)
    yield log
    log.end_writing()


async def numbers(stream: AsyncIterator[LogWindow]) -> list[int]:
    heard: list[int] = []
    async for window in stream:
        assert not heard or window.first_line == heard[-1] + 1 + window.skipped
        heard.extend(range(window.first_line, window.first_line + len(window.lines)))
        assert [line.split()[1] for line in window.lines] == [
            str(line) for line in heard[len(heard) - len(window.lines) :]
        ]
    return heard


async def test_follower_gets_each_line_once(log: EngineLog) -> None:
    stream = messages(_follow(log, log.last(5)), LogWindow)
    first = await anext(stream)
    assert (first.first_line, len(first.lines)) == (16, 5)
    # In the file and live, before the follower has read the file.
    say(log, 21, 30)
    rest = asyncio.create_task(numbers(stream))
    await asyncio.sleep(0)
    say(log, 31, 40)
    log.close()
    assert await asyncio.wait_for(rest, 10.0) == list(range(21, 41))


async def test_follower_of_matches_gets_each_match_once(log: EngineLog) -> None:
    keep = LogFilter("LOUD")
    stream = messages(_follow_matches(log, keep, log.search_back(keep, 2)), LogMatches)
    first = await anext(stream)
    assert [match.line for match in first.matches] == [15, 20]
    assert (first.scanned_from, first.scanned_to) == (15, 21)
    say(log, 21, 30)

    async def rest() -> list[int]:
        seen, heard = first.scanned_to, []
        async for page in stream:
            assert page.scanned_from == seen
            assert page.skipped == 0
            seen = page.scanned_to
            heard += [match.line for match in page.matches]
            assert all(match.text == f"loud {match.line}" for match in page.matches)
        return heard

    task = asyncio.create_task(rest())
    await asyncio.sleep(0)
    say(log, 31, 40)
    log.close()
    assert await asyncio.wait_for(task, 10.0) == [25, 30, 35, 40]


async def test_follower_from_a_dropped_line_hears_of_the_gap(
    log: EngineLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One step of the search gets to the end, however busy the machine is.
    monkeypatch.setattr("appliance.engine.log_search._STEP_S", 60.0)
    say(log, 21, 5000)
    log.close()
    windows = [each async for each in messages(_follow(log, log.window(1, 1)), LogWindow)]
    assert windows[0].lines == ["line 1"]
    gaps = [window for window in windows if window.skipped]
    assert len(gaps) == 1
    assert windows[-1].first_line + len(windows[-1].lines) == 5001
    matches = log.search(LogFilter("loud"), 1, 10_000)
    assert matches.is_complete
    assert matches.skipped == gaps[0].skipped
    assert matches.matches[-1].line == 5000
