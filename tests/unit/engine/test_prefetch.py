import threading
from pathlib import Path

import pytest

from appliance.engine.prefetch import prefetch
from appliance.units import MIB


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
