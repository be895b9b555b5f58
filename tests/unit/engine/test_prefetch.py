import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.engine.prefetch import prefetch
from appliance.units import MIB
from tests.support.memory import anonymous_bytes


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 3 * MIB)
    (tmp_path / "b.safetensors").write_bytes(b"\0" * 9 * MIB)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_all_weights_are_read(weights: Path) -> None:
    assert prefetch(weights, threading.Event()) == 12 * MIB


def test_nothing_is_read_that_would_push_out_too_much(weights: Path) -> None:
    assert prefetch(weights, threading.Event(), available_bytes=23 * MIB) == 0
    assert prefetch(weights, threading.Event(), available_bytes=24 * MIB) == 12 * MIB


def test_it_stops_when_told(weights: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert prefetch(weights, stop) == 0


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    assert prefetch(tmp_path, threading.Event()) == 0
    assert prefetch(tmp_path / "nowhere", threading.Event()) == 0


def test_no_thread_keeps_its_buffer(weights: Path) -> None:
    threads = 8
    meet = threading.Barrier(threads)

    def read(_: int) -> int:
        # Each in a thread of its own: malloc keeps memory by thread.
        meet.wait(10)
        return prefetch(weights, threading.Event(), available_bytes=24 * MIB)

    with ThreadPoolExecutor(threads) as pool:
        # malloc returns the first such block to the system, not those that follow.
        before = anonymous_bytes(os.getpid())
        for _ in range(3):
            assert set(pool.map(read, range(threads))) == {12 * MIB}
        assert anonymous_bytes(os.getpid()) - before < 8 * MIB
