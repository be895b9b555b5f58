"""Batches over more models than fit: each is loaded once, though they pause between their lines."""

from tests.stub.conftest import MakeModel, MakeServer, starts_of
from tests.support.batch_calls import find, submit, wait_for
from tests.support.batches import chat_line

LINES = 90
MODELS = ("a", "b", "c")


def test_two_batches_over_three_models_load_each_once(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    # One line at a time: after each of them the engine is idle for a moment.
    server = make_server(
        '[[devices.simulated]]\nmemory = "2GiB"\n[slots]\nmin_loaded = "0s"\n'
        "[batches]\nmax_concurrency = 1\n"
    )
    paths = {name: make_model(name, token_s=0.001) for name in MODELS}
    for name, path in paths.items():
        server.add_model(name, path, memory_bytes=1500 * 1024**2)
    requests = [chat_line(f"r{n}", MODELS[n % 3]) for n in range(LINES)]
    ids = [submit(server, requests) for _ in range(2)]
    for batch_id in ids:
        wait_for(server, batch_id, LINES + 1)
        assert find(server, batch_id)["request_counts"]["completed"] == LINES
    # The second one may come when the first has had its first turn.
    assert sum(map(starts_of, paths.values())) <= len(MODELS) + 1
