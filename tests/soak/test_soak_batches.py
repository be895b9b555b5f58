"""Fifty kills each of the server, and of engines, amid batches of 2,000 lines; power cuts."""

import random
from pathlib import Path

import pytest

from tests.engine import test_batches_on_engines as engines
from tests.engine.conftest import start_server
from tests.stub import test_batch_crash as crash
from tests.stub.conftest import MakeModel, MakeServer
from tests.unit.batch.conftest import _no_pauses, _no_waits_for_the_disk  # noqa: F401
from tests.unit.batch.test_batch_every_step import cut_the_power

pytestmark = [
    pytest.mark.timeout(3600),
    # Files that nobody can close after a cut of the power.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROUNDS = 50


@pytest.mark.parametrize("kill", [crash.kill_servers, crash.kill_engines])
def test_every_line_ends_once(
    make_server: MakeServer, make_model: MakeModel, kill: crash.Kill
) -> None:
    seed = random.randrange(10**6)
    server = make_server(crash.CONFIG)
    server.add_model("a", make_model("a", token_s=0.01))
    print(kill.__name__, "seed", seed, "batches", kill(server, ROUNDS, seed))


@pytest.mark.parametrize("act", ["complete", "cancel", "expire"])
async def test_every_step_may_be_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    for number in range(5):
        steps = await cut_the_power(tmp_path / str(number), monkeypatch, act, first=1, stride=1)
        print(act, "steps", steps)


@pytest.mark.engine
def test_real_engines_answer_the_same_whatever_is_killed(tmp_path: Path, prepared: Path) -> None:
    seed = random.randrange(10**6)
    server = start_server(tmp_path / "home", prepared, engines.KILLS)
    try:
        server.add_model("tiny", prepared / "models/tiny")
        batches, killed = engines.kill_at_random(server, ROUNDS, seed, engines.MANY_LINES)
        print("seed", seed, "batches", batches, "killed", killed)
    finally:
        server.end()
