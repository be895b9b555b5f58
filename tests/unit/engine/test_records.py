import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from appliance.engine.proctree import boot_id, process_info
from appliance.engine.records import (
    ENGINE_VARIABLE,
    EngineRecord,
    argv_digest,
    remove_record,
    sweep,
    write_record,
)
from tests.support.wait import wait_until

LIMIT_S = 10.0
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children that sleep, marked as an engine's or not; kills those that are left."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(engine_id: str | None = None) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ["PATH"]}
        if engine_id is not None:
            env[ENGINE_VARIABLE] = engine_id
        child = subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)
        started.append(child)
        # The environment of the new program, not the one of this process, which it starts with.
        wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", LIMIT_S)
        return child

    yield start_one
    for child in started:
        child.kill()
        child.wait(LIMIT_S)


def start_ticks(pid: int) -> int:
    info = process_info(pid)
    assert info is not None
    return info.start_ticks


def record(engine_id: str = "eng_1", **changes: object) -> EngineRecord:
    fields: dict[str, object] = {
        "id": engine_id,
        "model": f"model of {engine_id}",
        "argv_digest": argv_digest(["vllm"]),
        "devices": ["cpu"],
        "socket": f"/run/{engine_id}.sock",
        "boot_id": boot_id(),
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return EngineRecord(**{**fields, **changes})  # type: ignore[arg-type]


def lives(child: subprocess.Popen[bytes]) -> bool:
    return child.poll() is None


def test_record_is_written_and_replaced_whole(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    write_record(tmp_path, record(pid=7, start_ticks=9))
    assert [file.name for file in tmp_path.iterdir()] == ["eng_1.json"]
    text = (tmp_path / "eng_1.json").read_bytes()
    assert msgspec.json.decode(text, type=EngineRecord) == record(pid=7, start_ticks=9)


def test_record_goes_with_its_socket(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    write_record(tmp_path, record("eng_2"))
    (tmp_path / "eng_1.sock").touch()
    remove_record(tmp_path, "eng_1")
    remove_record(tmp_path, "eng_1")
    assert [file.name for file in tmp_path.iterdir()] == ["eng_2.json"]


def test_digests_tell_command_lines_apart() -> None:
    assert argv_digest(["a", "b"]) == argv_digest(["a", "b"])
    assert len({argv_digest(argv) for argv in (["a", "b"], ["a b"], ["ab"], ["a", "b", ""])}) == 4


def test_engine_that_was_left_behind_is_ended(start: Start, tmp_path: Path) -> None:
    engine = start("eng_1")
    write_record(tmp_path, record(pid=engine.pid, start_ticks=start_ticks(engine.pid)))
    assert sweep(tmp_path) == ["model of eng_1"]
    assert engine.wait(LIMIT_S) == -9
    assert list(tmp_path.iterdir()) == []


def test_engine_whose_server_died_between_spawn_and_record_is_ended(
    start: Start, tmp_path: Path
) -> None:
    engine = start("eng_1")
    write_record(tmp_path, record())
    assert sweep(tmp_path) == ["model of eng_1"]
    assert engine.wait(LIMIT_S) == -9


def test_process_without_the_mark_is_found_by_its_session(start: Start, tmp_path: Path) -> None:
    engine = start()
    write_record(tmp_path, record(pid=engine.pid, start_ticks=start_ticks(engine.pid)))
    assert sweep(tmp_path) == ["model of eng_1"]
    assert engine.wait(LIMIT_S) == -9


def test_process_that_was_given_the_same_pid_is_left_alone(start: Start, tmp_path: Path) -> None:
    stranger = start()
    write_record(tmp_path, record(pid=stranger.pid, start_ticks=start_ticks(stranger.pid) - 1))
    assert sweep(tmp_path) == []
    assert lives(stranger)
    assert list(tmp_path.iterdir()) == []


def test_engine_of_another_record_is_left_alone(start: Start, tmp_path: Path) -> None:
    other, engine = start("eng_10"), start("eng_1")
    write_record(tmp_path, record())
    sweep(tmp_path)
    assert engine.wait(LIMIT_S) == -9
    assert lives(other)


def test_record_of_an_earlier_boot_names_nobody(start: Start, tmp_path: Path) -> None:
    engine = start("eng_1")
    write_record(
        tmp_path,
        record(pid=engine.pid, start_ticks=start_ticks(engine.pid), boot_id="an earlier one"),
    )
    assert sweep(tmp_path) == []
    assert lives(engine)
    assert list(tmp_path.iterdir()) == []


def test_record_of_an_engine_that_is_gone_is_removed(start: Start, tmp_path: Path) -> None:
    engine = start("eng_1")
    ticks = start_ticks(engine.pid)
    engine.kill()
    engine.wait(LIMIT_S)
    write_record(tmp_path, record(pid=engine.pid, start_ticks=ticks))
    assert sweep(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_whatever_else_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "eng_1.json").write_text("{half a rec")
    (tmp_path / "eng_2.json.new").write_text("{")
    (tmp_path / "eng_3.new").write_text("{")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "eng_4.sock"))
    assert sweep(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "none") == []
