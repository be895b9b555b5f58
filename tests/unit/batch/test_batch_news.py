"""What followers hear of a batch, and when."""

from functools import partial
from pathlib import Path

import msgspec
import pytest

from appliance.batch.news import BatchNews
from appliance.batch.run import BatchRun
from appliance.protocol.batches import Batch, BatchStatus, RequestCounts
from appliance.protocol.events import BatchChanged, Event
from appliance.store.batches import StoredBatch, put_batch
from appliance.store.database import Database


def stored(number: int = 1, status: BatchStatus = BatchStatus.VALIDATING) -> StoredBatch:
    batch = Batch(
        id=f"batch_{number}", endpoint="/v1/embeddings", input_file_id="file-1",
        completion_window="24h", status=status, created_at=number,
    )  # fmt: skip
    return StoredBatch(batch=batch, output_file_id="file-o", error_file_id="file-e")


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
async def news(tmp_path: Path, heard: list[Event]) -> BatchNews:
    return BatchNews(Database(tmp_path / "db"), heard.append)


@pytest.fixture
async def run(tmp_path: Path) -> BatchRun:
    return BatchRun(stored(), tmp_path)


def counted(run: BatchRun, completed: int) -> None:
    counts = RequestCounts(total=9, completed=completed)
    run.batch = msgspec.structs.replace(run.batch, request_counts=counts)


async def test_a_new_state_is_told_at_once_and_counts_are_not(
    news: BatchNews, run: BatchRun, heard: list[Event]
) -> None:
    news.tell(run)
    assert len(heard) == 1
    news.tell(run)
    counted(run, 3)
    news.tell(run)
    assert len(heard) == 1
    run.batch = msgspec.structs.replace(run.batch, status=BatchStatus.IN_PROGRESS)
    news.tell(run)
    run.stored = msgspec.structs.replace(run.stored, is_paused=True)
    news.tell(run)
    assert [each.batch.is_paused for each in heard if isinstance(each, BatchChanged)] == [
        False, False, True,
    ]  # fmt: skip


async def test_counts_and_problems_are_told_together_and_only_if_they_changed(
    news: BatchNews, run: BatchRun, heard: list[Event]
) -> None:
    news.tell(run)
    counted(run, 3)
    run.problem = "no room"
    news.tell_counts()
    news.tell_counts()
    assert len(heard) == 2
    assert isinstance(heard[1], BatchChanged)
    assert heard[1].batch.batch.request_counts.completed == 3
    assert heard[1].batch.problem == "no room"
    assert news.told() == [heard[1].batch]


async def test_the_end_is_told_and_nothing_after_it(
    news: BatchNews, run: BatchRun, heard: list[Event]
) -> None:
    news.tell(run)
    run.batch = msgspec.structs.replace(run.batch, status=BatchStatus.COMPLETED)
    news.tell(run)
    counted(run, 9)
    news.tell_counts()
    assert len(heard) == 2
    assert [each.batch.status for each in news.told()] == [BatchStatus.COMPLETED]


async def test_batches_of_an_earlier_server_are_known_without_an_event(
    tmp_path: Path, heard: list[Event]
) -> None:
    database = Database(tmp_path / "db")
    await database.open()
    try:
        for number in range(30):
            status = BatchStatus.CANCELLED if number else BatchStatus.IN_PROGRESS
            await database.write(partial(put_batch, stored(number, status)))
        news = BatchNews(database, heard.append)
        await news.open()
    finally:
        await database.close()
    assert [each.batch.created_at for each in news.told()] == [0, *range(10, 30)]
    assert heard == []
