from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from appliance.engine.environments import (
    EnvironmentRecord,
    EnvironmentStore,
    check_name,
    may_start_warm,
    packages_stamp,
    preload_modules,
)
from appliance.errors import EngineEnvironmentError
from appliance.protocol.system import WarmOutcome, WarmStart

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


def make_check(packages: str, outcome: WarmOutcome = WarmOutcome.SAME) -> WarmStart:
    return WarmStart(outcome=outcome, checked_at=NOW, packages=packages, plain_s=16.1, warm_s=1.04)


def install_package(directory: Path, name: str, text: str = "") -> Path:
    """As pip leaves it."""
    record = directory / "lib/python3.11/site-packages" / f"{name}.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    return record


def test_manifest_from_before_the_check(store: EnvironmentStore) -> None:
    store.add(make_record("old"))
    manifest = store.root / "old" / "environment.json"
    fields = msgspec.json.decode(manifest.read_bytes())
    del fields["warm_start"]
    manifest.write_bytes(msgspec.json.encode(fields))
    record = store.get("old")
    assert record == make_record("old")
    assert not may_start_warm(record, "x")
    assert store.view(record).warm_start is None


@pytest.mark.parametrize("outcome", list(WarmOutcome))
def test_only_the_same_answers_with_the_same_packages_start_warm(outcome: WarmOutcome) -> None:
    record = msgspec.structs.replace(make_record("a"), warm_start=make_check("now", outcome))
    assert may_start_warm(record, "now") == (outcome is WarmOutcome.SAME)
    assert not may_start_warm(record, "later")


def test_stamp_changes_with_every_package(tmp_path: Path) -> None:
    stamps = [packages_stamp(tmp_path)]
    changed = install_package(tmp_path, "one-1.0")
    stamps.append(packages_stamp(tmp_path))
    install_package(tmp_path, "two-2.0")
    stamps.append(packages_stamp(tmp_path))
    changed.write_text("other files")
    stamps.append(packages_stamp(tmp_path))
    changed.parent.rename(changed.parent.with_name("one-1.1.dist-info"))
    stamps.append(packages_stamp(tmp_path))
    assert len(set(stamps)) == len(stamps)
    assert packages_stamp(tmp_path) == stamps[-1]


def test_a_check_is_noted_and_gets_stale_with_the_packages(store: EnvironmentStore) -> None:
    directory = store.root / "a"
    python = str(directory / "bin" / "python")
    store.add(msgspec.structs.replace(make_record("a"), launch=[python, "-m", "x"]))
    store.note_warm_start("a", make_check(packages_stamp(directory)))
    seen = store.view(store.get("a")).warm_start
    assert seen is not None
    assert (seen.outcome, seen.warm_s) == (WarmOutcome.SAME, 1.04)

    install_package(directory, "new-1.0")
    record = store.get("a")
    assert record.warm_start is not None
    assert record.warm_start.outcome is WarmOutcome.SAME
    seen = store.view(record).warm_start
    assert seen is not None
    assert seen.outcome is WarmOutcome.STALE
    assert "packages changed" in seen.reason


def test_lists_of_modules_are_for_one_build() -> None:
    record = make_record("a")
    assert "vllm.v1.engine.core" in (preload_modules(record) or [])
    assert preload_modules(msgspec.structs.replace(record, vllm_version="0.32.1")) is None
    assert preload_modules(msgspec.structs.replace(record, platform="cuda")) is None
    assert preload_modules(msgspec.structs.replace(record, launch=["vllm", "serve"])) is None
