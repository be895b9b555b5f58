"""Fifty kills each of the server, and of engines, amid batches of 2,000 lines."""

import random

import pytest

from tests.stub import test_batch_crash as crash
from tests.stub.conftest import MakeModel, MakeServer

pytestmark = pytest.mark.timeout(3600)

ROUNDS = 50


@pytest.mark.parametrize("kill", [crash.kill_servers, crash.kill_engines])
def test_every_line_ends_once(
    make_server: MakeServer, make_model: MakeModel, kill: crash.Kill
) -> None:
    seed = random.randrange(10**6)
    server = make_server(crash.CONFIG)
    server.add_model("a", make_model("a", token_s=0.01))
    print(kill.__name__, "seed", seed, "batches", kill(server, ROUNDS, seed))
