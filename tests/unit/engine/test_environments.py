from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from appliance.engine.environments import EnvironmentRecord, EnvironmentStore, check_name
from appliance.errors import EngineEnvironmentError

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


def make_record(name: str, *, age_days: int = 0, flags: tuple[str, ...] = ()) -> EnvironmentRecord:
    return EnvironmentRecord(
        name=name,
        platform="cpu",
        vllm_version="0.32.0",
        torch_version="2.13.0+cpu",
        python_version="3.11.2",
        launch=["/envs/x/bin/python", "-m", "vllm.entrypoints.openai.api_server"],
        flags=list(flags),
        size_bytes=3_500_000_000,
        created_at=NOW - timedelta(days=age_days),
        has_sleep_mode=False,
    )


@pytest.fixture
def store(tmp_path: Path) -> EnvironmentStore:
    return EnvironmentStore(tmp_path / "engines")


def test_record_survives_the_manifest(store: EnvironmentStore) -> None:
    record = make_record("cpu-0.32.0", flags=("--uds", "--model"))
    store.add(record)
    assert store.get("cpu-0.32.0") == record
    assert store.get().has_flag("--uds")
    assert not store.get().has_flag("--enable-sleep-mode")


@pytest.mark.parametrize("name", ["cpu-0.32.0", "a", "0.33_nightly"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", "-a", ".a", "A", "a b", "default", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(EngineEnvironmentError):
        check_name(name)


def test_nothing_installed_says_what_to_do(store: EnvironmentStore) -> None:
    assert store.records() == []
    assert store.unfinished() == []
    assert store.in_use() is None
    with pytest.raises(EngineEnvironmentError, match="appliance engine install"):
        store.get()


def test_first_one_is_in_use_until_another_is_chosen(store: EnvironmentStore) -> None:
    store.add(make_record("b"))
    store.add(make_record("a"))
    assert store.in_use() == "b"
    store.use("a")
    assert store.in_use() == "a"
    assert [store.view(record).in_use for record in store.records()] == [True, False]


def test_without_a_choice_the_oldest_is_in_use(store: EnvironmentStore) -> None:
    store.add(make_record("new"))
    store.add(make_record("old", age_days=3))
    (store.root / "default").unlink()
    assert store.in_use() == "old"


def test_unfinished_is_not_listed_and_can_be_removed(store: EnvironmentStore) -> None:
    store.add(make_record("a"))
    (store.root / "half" / "bin").mkdir(parents=True)
    assert [record.name for record in store.records()] == ["a"]
    assert store.unfinished() == ["half"]
    with pytest.raises(EngineEnvironmentError, match="not complete"):
        store.use("half")
    store.remove("half")
    assert store.unfinished() == []


def test_broken_manifest_counts_as_unfinished(store: EnvironmentStore) -> None:
    store.add(make_record("a"))
    (store.root / "a" / "environment.json").write_text('{"name": "a"')
    assert store.records() == []
    assert store.unfinished() == ["a"]
    store.add(make_record("b"))
    assert store.in_use() == "b"


def test_the_one_in_use_is_not_removed_while_there_are_others(store: EnvironmentStore) -> None:
    store.add(make_record("a"))
    store.add(make_record("b"))
    with pytest.raises(EngineEnvironmentError, match="engine use b"):
        store.remove("a")
    store.remove("a", force=True)
    assert store.in_use() == "b"
    store.remove("b")
    assert store.in_use() is None
    with pytest.raises(EngineEnvironmentError, match="no engine environment b"):
        store.remove("b")


def test_directory_reached_by_a_link(store: EnvironmentStore, tmp_path: Path) -> None:
    store.add(make_record("a"))
    linked = tmp_path / "linked"
    linked.symlink_to(store.root)
    assert EnvironmentStore(linked).get() == store.get()


def test_renamed_directory_gives_the_name(store: EnvironmentStore) -> None:
    store.add(make_record("a"))
    (store.root / "a").rename(store.root / "b")
    assert [record.name for record in store.records()] == ["b"]


def test_view_tells_what_the_build_can_do(store: EnvironmentStore) -> None:
    record = make_record("a", flags=("--uds", "--kv-cache-memory-bytes"))
    store.add(record)
    view = store.view(record)
    assert (view.has_unix_socket, view.has_kv_cache_bytes, view.has_sleep_mode) == (
        True,
        True,
        False,
    )
    assert msgspec.json.decode(msgspec.json.encode(view))["vllm_version"] == "0.32.0"
