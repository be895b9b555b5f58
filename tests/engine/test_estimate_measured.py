"""The estimate of a model whose engine has run: what that engine took."""

from typing import Any

import pytest

from appliance.units import MIB
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

pytestmark = pytest.mark.engine


def rank(server: ServerProcess, model: str) -> dict[str, Any]:
    return dict(server.admin("GET", f"/models/{model}/estimate").json()["rank"])


def test_next_estimate_is_what_the_engine_took(server: ServerProcess) -> None:
    before = rank(server, "smollm2-135m")
    server.load("smollm2-135m")
    wait_until(
        lambda: rank(server, "smollm2-135m")["basis"] == "measured", 30, "the load is remembered"
    )
    after = rank(server, "smollm2-135m")
    took = server.model("smollm2-135m")["memory_bytes"]
    assert after["kv_cache_bytes"] == before["kv_cache_bytes"]
    assert after["total_bytes"] == pytest.approx(took, abs=100 * MIB)
    assert after["margin_ratio"] < before["margin_ratio"] or before["basis"] == "measured"
    # The estimate was not far off, and on the safe side.
    assert 0.7 * before["total_bytes"] < after["total_bytes"] <= 1.05 * before["total_bytes"]
    assert server.model("smollm2-135m")["need"]["basis"] == "measured"
