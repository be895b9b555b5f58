from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.protocol.models import ModelSettings, Task
from appliance.protocol.sleep import SleepVerdict
from appliance.slots.sleep_history import SleepHistory
from appliance.store.database import Database
from appliance.store.models import StoredModel, delete_model, put_model
from appliance.store.sleep import all_verdicts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKS = SleepVerdict(level=1, works=True, vllm_version="0.32.0", freed_bytes=7, at=NOW)
FAILS = SleepVerdict(level=2, works=False, reason="garbage", vllm_version="0.32.0", at=NOW)


async def test_verdicts_are_kept_by_configuration_version_and_level(tmp_path: Path) -> None:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    history = SleepHistory(database)
    await history.add("m", "f", WORKS)
    await history.add("m", "f", FAILS)
    again = SleepHistory(database)
    await again.load()
    for each in (history, again):
        assert each.of("f", "0.32.0") == {1: WORKS, 2: FAILS}
        assert each.of("f", "0.33.0") == {}
        assert each.of("g", "0.32.0") == {}
        assert each.of_model("m") == [WORKS, FAILS]
    later = msgspec.structs.replace(WORKS, works=False, reason="did not wake")
    await history.add("m", "f", later)
    assert [verdict for _, _, verdict in await database.read(all_verdicts)] == [later, FAILS]
    await database.close()


async def test_verdicts_go_with_their_model(tmp_path: Path) -> None:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    settings = ModelSettings(path="/models/x", task=Task.GENERATE)
    for model in ("m", "n"):
        stored = StoredModel(id=model, settings=settings, created_at=NOW)
        await database.write(lambda stored=stored: put_model(stored))
        await SleepHistory(database).add(model, model, WORKS)
    await database.write(lambda: delete_model("m"))
    assert [key for _, key, _ in await database.read(all_verdicts)] == ["n vllm-0.32.0"]
    await database.close()
