import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scheduler_world import StubSupervisor, world

from appliance.config.settings import SlotSettings
from appliance.errors import DoesNotFitError, UnavailableError
from appliance.gpu import condition
from appliance.protocol.devices import DeviceKind
from appliance.protocol.engines import EngineState
from appliance.protocol.events import AlertRaised
from appliance.slots.board import SlotBoard
from appliance.slots.history import fingerprint
from appliance.slots.requests import Changes
from appliance.slots.slot import Priority
from appliance.store.database import Database
from appliance.store.models import LoadRecord
from appliance.units import GIB
from tests.support.wait import wait_until_async


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    yield database
    await database.close()


async def test_an_engine_is_woken_once_however_often_is_decided(database: Database) -> None:
    async with world(database, 10 * GIB, 10 * GIB) as made:
        made.registry.add("a", sleep="auto", devices=["0"])
        made.registry.add("b", devices=["1"])
        made.slots.start()
        async with made.slots.lease("a"):
            pass
        made.slots.sleep("a", 2)
        running = made.running("a")
        assert running is not None
        await _until(lambda: running.is_asleep)
        # Both at once: the start of the other has the scheduler decide again before it waits.
        made.slots.wake("a")
        made.slots.load("b")
        await _until(lambda: running.supervisor.state is EngineState.READY)
        await _until(lambda: made.slots.is_ready("b"))
        assert made.engines[0].sleep.wakes == 1


async def test_nothing_is_decided_for_a_request_to_an_engine_that_is_ready(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(database, 10 * GIB) as made:
        made.registry.add("a")
        made.slots.start()
        async with made.slots.lease("a"):
            pass
        await made.settle()
        looks = 0
        rooms = SlotBoard.rooms

        def counted(board: SlotBoard) -> Any:
            nonlocal looks
            looks += 1
            return rooms(board)

        monkeypatch.setattr(SlotBoard, "rooms", counted)
        for _ in range(5):
            async with made.slots.lease("a"):
                await made.settle()
        assert looks == 0


async def test_a_sleeper_on_a_lost_device_gives_way_to_a_fresh_engine(database: Database) -> None:
    async with world(database, 10 * GIB, 10 * GIB) as made:
        made.registry.add("a", sleep="auto")
        made.slots.start()
        async with made.slots.lease("a"):
            pass
        made.slots.sleep("a", 2)
        sleeper = made.engines[0]
        await _until(lambda: sleeper.state is EngineState.ASLEEP)
        made.change_device(0, condition=condition.gpu_lost())
        await made.monitor.refresh()
        async with asyncio.timeout(5), made.slots.lease("a") as lease:
            (share,) = lease.running.supervisor.placement.shares
            assert share.device_id == "sim-1"


async def test_a_bug_in_what_is_suggested_to_one_model_leaves_the_others_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Changes) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Changes, "_found", property(fail))
    async with world(database, 10 * GIB) as made:
        made.registry.add("large", memory_bytes=20 * GIB)
        made.registry.add("small")
        made.slots.start()
        waiting = asyncio.create_task(_ask(made.slots.lease("large")))
        async with asyncio.timeout(5), made.slots.lease("small"):
            pass
        with pytest.raises((UnavailableError, DoesNotFitError)):
            await waiting


async def _ask(lease: Any) -> None:
    async with lease:
        pass


async def test_memory_of_an_ended_engine_is_read_again_before_the_next_is_planned(
    database: Database,
) -> None:
    async with world(database, 10 * GIB) as made:
        made.change_device(0, kind=DeviceKind.CPU, available_bytes=12 * GIB)
        await made.monitor.refresh()
        made.registry.add("a")
        made.registry.add("b")

        def launched(engine: StubSupervisor) -> None:
            engine.memory_bytes = 10 * GIB

        made.on_launch = launched
        made.slots.start()
        async with made.slots.lease("a"):
            # The last sample is from now, while its memory is in use.
            made.change_device(0, kind=DeviceKind.CPU, available_bytes=2 * GIB)
            await made.monitor.refresh()
        made.change_device(0, kind=DeviceKind.CPU, available_bytes=12 * GIB)
        async with asyncio.timeout(5), made.slots.lease("b") as lease:
            assert lease.model == "b"


async def test_a_batch_waits_beyond_the_time_after_which_people_are_sent_away(
    database: Database,
) -> None:
    settings = SlotSettings(queue_timeout="0.05s", batch_max_wait="0.3s", min_loaded="0s")
    async with world(database, 10 * GIB, settings=settings) as made:
        made.registry.add("a")
        made.registry.add("b")
        made.slots.start()
        async with made.slots.lease("a") as held:
            asking = asyncio.create_task(_ask(made.slots.lease("b", Priority.BATCH)))
            # Others are in its way until it is due; then the engine takes no more requests.
            await _until(lambda: not held.running.takes_requests)
        async with asyncio.timeout(5):
            await asking


async def test_a_drained_engine_serves_on_once_its_place_is_not_needed(database: Database) -> None:
    settings = SlotSettings(max_wait="0.1s", min_loaded="0s")
    async with world(database, 10 * GIB, 10 * GIB, settings=settings) as made:
        for model in "abc":
            made.registry.add(model)
        made.slots.start()
        async with made.slots.lease("a") as of_a, made.slots.lease("b") as of_b:
            asking = asyncio.create_task(_ask(made.slots.lease("c")))
            made.on_launch = lambda engine: engine.may_load.clear()
            await _until(lambda: not (of_a.running.takes_requests and of_b.running.takes_requests))
            drained, other = (of_b, of_a) if of_a.running.takes_requests else (of_a, of_b)
            # The other one dies, so that there is room for the new one, which takes long to load.
            other.running.supervisor.stop("test")
            await _until(lambda: drained.running.takes_requests)
            assert made.running("c") is not None
            assert not asking.done()
        made.engines[-1].may_load.set()
        await asking


async def test_nothing_starts_on_a_gpu_while_an_engine_falls_asleep_there(
    database: Database,
) -> None:
    async with world(database, 30 * GIB) as made:
        made.change_device(0, kind=DeviceKind.GPU, available_bytes=30 * GIB)
        await made.monitor.refresh()
        made.registry.add("a", sleep="auto")
        made.slots.start()
        async with made.slots.lease("a") as lease:
            running = lease.running
        running.is_falling_asleep = True
        (room,) = made.slots.board.rooms()
        assert room.is_freeing
        running.is_falling_asleep = False


async def test_a_model_that_does_not_fit_is_told_of_once(database: Database) -> None:
    async with world(database, 10 * GIB) as made:
        made.registry.add("a", memory_bytes=20 * GIB)
        made.registry.add("b")
        made.slots.start()
        with pytest.raises(DoesNotFitError):
            await _ask(made.slots.lease("a"))
        slot = made.slots.board.slot("a")
        first = slot.failure
        async with made.slots.lease("b"):
            slot.retry_at, slot.wanted_since = 0.0, time.monotonic()
            made.slots.board.wake.set()
            await _until(lambda: slot.failure is not first)
        assert first is not None
        assert slot.failure is not None
        assert slot.failure.message != first.message
        alerts = [each for each in made.events if isinstance(each, AlertRaised)]
        assert len(alerts) == 1


async def test_a_batch_that_is_over_needs_its_turn_no_more(database: Database) -> None:
    settings = SlotSettings(batch_turn="60s", min_loaded="2s")
    async with world(database, 10 * GIB, settings=settings) as made:
        made.registry.add("a")
        made.slots.start()
        with made.slots.batches.ahead("a"):
            async with made.slots.lease("a", Priority.BATCH) as lease:
                running = lease.running
            running.turn_s = 60.0
            (paused,) = made.slots.board.residents(running.last_used + 1)
        (over,) = made.slots.board.residents(running.last_used + 1)
        assert paused.kept_until > running.last_used + 50
        assert over.kept_until < running.last_used + 1


async def test_a_batch_keeps_its_engine_from_others_between_its_requests(
    database: Database,
) -> None:
    settings = SlotSettings(min_loaded="0s")
    async with world(database, 10 * GIB, settings=settings) as made:
        made.registry.add("a")
        made.slots.start()
        with made.slots.batches.ahead("a"):
            async with made.slots.lease("a", Priority.BATCH) as lease:
                last_used = lease.running.last_used
            (between,) = made.slots.board.residents(last_used + 60)
            assert (between.is_busy, between.is_batch_only) == (True, True)
        (over,) = made.slots.board.residents(last_used + 60)
        assert (over.is_busy, over.is_batch_only) == (False, False)


async def _until(condition: Callable[[], bool]) -> None:
    async def is_true() -> bool:
        return condition()

    await wait_until_async(is_true)


async def test_a_model_says_why_it_failed_as_soon_as_it_says_that_it_did(
    database: Database,
) -> None:
    async with world(database, 10 * GIB) as made:
        made.registry.add("a")
        made.slots.start()
        async with made.slots.lease("a"):
            # Its memory is not back yet, so the slot is still its own.
            made.engines[0].fail("it died")
            model = made.slots.board.model("a")
            assert model.state is EngineState.FAILED
            assert model.failure is not None
            assert model.failure.message == "it died"


async def test_an_estimate_follows_settings_and_measurements(database: Database) -> None:
    async with world(database, 80 * GIB) as made:
        made.registry.add("a", memory_bytes=None)
        board, known = made.slots.board, made.registry.get("a")
        before = board.estimate(known)
        assert board.estimate(known) is before
        made.registry.add("a", memory_bytes=None, max_sequences=1)
        assert board.estimate(made.registry.get("a")).total_bytes < before.total_bytes
        took = before.total_bytes + GIB
        await made.history.add(
            LoadRecord(
                model="a",
                fingerprint="f",
                load_s=1.0,
                phases={},
                memory_bytes=took,
                at=datetime.now(UTC),
                configuration=fingerprint("a", known.settings, "", known.context_length),
                rank_bytes=took,
                kv_cache_bytes=before.kv_cache_bytes,
            )
        )
        assert board.estimate(known).total_bytes == took
