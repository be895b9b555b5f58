"""A load of twenty minutes that moves is not given up, with limits as a person has them."""

import time

import pytest

from tests.stub.conftest import MakeModel, MakeServer, starts_of

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.parametrize("step", ["shard", "read"])
def test_twenty_minutes(make_server: MakeServer, make_model: MakeModel, step: str) -> None:
    server = make_server(
        '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nstall_timeout = "2m"\n'
    )
    model = make_model("a", steps=13, step_s=95, step=step)
    server.add_model("a", model)
    started = time.monotonic()
    server.load("a", timeout_s=1500)
    assert time.monotonic() - started > 20 * 60
    assert starts_of(model) == 1
