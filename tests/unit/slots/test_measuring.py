from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.estimate.measured import Measurement
from appliance.protocol.devices import DeviceKind
from appliance.slots.history import LoadHistory
from appliance.slots.measuring import fullest_rank_bytes
from appliance.store.database import Database
from appliance.store.models import LoadRecord

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "ram", "ranks", "on_devices", "expected"),
    [
        (DeviceKind.GPU, 999, 2, [500, 510], 510),
        (DeviceKind.GPU, 999, 1, [0], 0),
        (DeviceKind.GPU, 999, 1, [], 0),
        (DeviceKind.CPU, 1000, 1, [], 1000),
        (DeviceKind.SIMULATED, 1000, 2, [0, 0], 500),
        (DeviceKind.CPU, 0, 1, [], 0),
    ],
)
def test_memory_of_a_rank(
    kind: DeviceKind, ram: int, ranks: int, on_devices: list[int], expected: int
) -> None:
    taken = fullest_rank_bytes(kind, ram_bytes=ram, ranks=ranks, on_devices=on_devices)
    assert taken == expected


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    yield database
    await database.close()


def load(
    number: int, fingerprint: str, configuration: str = "c", rank_bytes: int = 9
) -> LoadRecord:
    return LoadRecord(
        model="m",
        fingerprint=fingerprint,
        load_s=1.0,
        phases={},
        memory_bytes=1,
        at=START + timedelta(seconds=number),
        configuration=configuration,
        rank_bytes=rank_bytes,
        kv_cache_bytes=4,
        weights_bytes=3,
        graphs_bytes=2,
    )


async def test_measurements_are_those_of_the_environment_used_last(database: Database) -> None:
    history = LoadHistory(database)
    assert history.measurements("c") == []
    await history.add(load(1, "old-engine", rank_bytes=20))
    await history.add(load(2, "new-engine", rank_bytes=10))
    await history.add(load(3, "new-engine", rank_bytes=11))
    await history.add(load(4, "other", configuration="d"))
    await history.add(load(5, "unknown", rank_bytes=0))
    again = LoadHistory(database)
    await again.load()
    for each in (history, again):
        assert each.measurements("c") == [
            Measurement(rank_bytes=taken, kv_cache_bytes=4, weights_bytes=3, graphs_bytes=2)
            for taken in (10, 11)
        ]
