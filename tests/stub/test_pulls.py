"""Pulls through a server, from a hub on this machine, with the real client."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.stub.conftest import MakeModel, Serve
from tests.support.checkpoints import checkpoint
from tests.support.disk import small_disk
from tests.support.hub import Fault, LocalHub
from tests.support.pulls import (
    REPO,
    SOON_S,
    act,
    fetching_processes,
    known_models,
    pull,
    until,
    until_done,
    view,
    wait_until_gone,
)
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

MIB = 1 << 20
WEIGHTS = "model.safetensors"


def test_a_pulled_model_answers(serve: Serve, hub: LocalHub) -> None:
    # The stub engine wants a file of its own in a checkpoint.
    commit = hub.commit(REPO, checkpoint(2 * MIB, shards=3) | {"stub.json": b"{}"})
    server = serve()
    done = until(server, pull(server), "completed")
    assert done["commit"] == commit
    assert done["done_bytes"] == done["total_bytes"] > 6 * MIB
    assert done["files_done"] == done["files_total"] == 7
    assert server.model(REPO)["settings"]["path"] == done["path"]
    server.load(REPO)


def test_the_cache_of_hugging_face_is_used(serve: Serve, hub: LocalHub, tmp_path: Path) -> None:
    hub.commit(REPO, checkpoint())
    server = serve(HF_HOME=str(tmp_path / "hf"))
    done = until(server, pull(server), "completed")
    assert done["path"].startswith(f"{tmp_path}/hf/hub/models--acme--small/snapshots/")
    sent = hub.sent(WEIGHTS)
    until(server, pull(server), "completed")
    assert hub.sent(WEIGHTS) == sent


def test_a_newer_commit_moves_the_model(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    server = serve()
    first = until(server, pull(server), "completed")
    hub.commit(REPO, checkpoint(seed=5))
    second = until(server, pull(server), "completed")
    assert first["path"] != second["path"] == server.model(REPO)["settings"]["path"]
    assert known_models(server) == [REPO]


def test_a_revision_and_a_name_of_ones_own(serve: Serve, hub: LocalHub) -> None:
    old = hub.commit(REPO, checkpoint(), branch="v1")
    hub.commit(REPO, checkpoint(seed=5))
    server = serve()
    done = until(server, pull(server, revision="v1", name="small-v1"), "completed")
    assert done["commit"] == old
    assert known_models(server) == ["small-v1"]


def test_pause_and_resume_fetch_nothing_twice(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=3 * MIB))
    server = serve()
    pull_id = pull(server)
    hub.wait_until_held()
    until_done(server, pull_id, int(2.5 * MIB))
    paused = act(server, pull_id, "pause")
    assert paused["state"] == "paused"
    assert fetching_processes(server) == []
    assert known_models(server) == []
    assert act(server, pull_id, "resume")["state"] in {"queued", "running"}
    until(server, pull_id, "completed")
    assert hub.sent(WEIGHTS) < 4.6 * MIB


def test_a_paused_pull_stays_paused_through_a_restart(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=3 * MIB))
    server = serve()
    pull_id = pull(server)
    hub.wait_until_held()
    act(server, pull_id, "pause")
    server.stop()
    server = serve()
    assert view(server, pull_id)["state"] == "paused"
    act(server, pull_id, "resume")
    until(server, pull_id, "completed")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_next_server_goes_on(serve: Serve, hub: LocalHub, how: str) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    places = [MIB, 2 * MIB, 3 * MIB]
    hub.spoil(WEIGHTS, *(Fault(hold_at=place) for place in places))
    server = serve()
    pull_id = pull(server)
    for place in places:
        hub.wait_until_held()
        until_done(server, pull_id, place - MIB // 3)
        [process] = fetching_processes(server)
        getattr(server, how)()
        wait_until_gone(process)
        server = serve()
    until(server, pull_id, "completed")
    assert known_models(server) == [REPO]
    assert hub.sent(WEIGHTS) < 4.6 * MIB


def test_a_killed_process_is_started_again(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=3 * MIB))
    server = serve()
    pull_id = pull(server)
    hub.wait_until_held()
    until_done(server, pull_id, int(2.5 * MIB))
    [process] = fetching_processes(server)
    os.kill(process, signal.SIGKILL)
    until(server, pull_id, "completed")
    assert hub.sent(WEIGHTS) < 4.6 * MIB


def test_cancel_leaves_nothing_behind(serve: Serve, hub: LocalHub, tmp_path: Path) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=3 * MIB))
    server = serve(HF_HUB_CACHE=str(tmp_path / "cache"))
    pull_id = pull(server)
    hub.wait_until_held()
    assert act(server, pull_id, "cancel")["state"] == "cancelled"
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert known_models(server) == []
    until(server, pull(server), "completed")


def test_cancel_keeps_what_an_older_checkpoint_needs(serve: Serve, hub: LocalHub) -> None:
    files = checkpoint(2 * MIB, shards=2)
    hub.commit(REPO, files)
    server = serve()
    first = until(server, pull(server), "completed")
    shard = "model-00002-of-00002.safetensors"
    hub.commit(REPO, files | {shard: checkpoint(2 * MIB, seed=9)[WEIGHTS]})
    hub.spoil(shard, Fault(hold_at=MIB))
    pull_id = pull(server)
    hub.wait_until_held()
    act(server, pull_id, "cancel")
    assert (Path(first["path"]) / shard).read_bytes() == files[shard]
    assert server.model(REPO)["settings"]["path"] == first["path"]


def test_a_lost_network_is_waited_out(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    server = serve()
    hub.go_away()
    pull_id = pull(server)
    waiting = wait_until(lambda: (now := view(server, pull_id))["retry_at"] and now, SOON_S)
    assert waiting["state"] == "queued"
    assert waiting["problem"]["cause"] == "network"
    hub.come_back()
    until(server, pull_id, "completed")


def test_a_network_that_stays_lost_is_a_failure(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    server = serve("[pulls]\ngive_up = 0\n")
    hub.go_away()
    pull_id = pull(server)
    failed = until(server, pull_id, "failed")
    assert failed["problem"]["cause"] == "network"
    hub.come_back()
    assert pull(server) == pull_id
    until(server, pull_id, "completed")


def test_wrong_bytes_are_never_a_model(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB, shards=2))
    shard = "model-00001-of-00002.safetensors"
    hub.spoil(shard, Fault(wrong=True))
    server = serve()
    pull_id = pull(server)
    failed = until(server, pull_id, "failed")
    assert failed["problem"]["cause"] == "wrong_hash"
    assert shard in failed["problem"]["message"]
    assert known_models(server) == []
    act(server, pull_id, "resume")
    until(server, pull_id, "completed")
    assert hub.sent("model-00002-of-00002.safetensors") < 1.5 * MIB


def test_a_commit_that_is_gone_fails_and_resume_takes_the_newest(
    serve: Serve, hub: LocalHub
) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB))
    server = serve()
    pull_id = pull(server)
    hub.wait_until_held()
    act(server, pull_id, "pause")
    hub.repos[REPO].commits.clear()
    newest = hub.commit(REPO, checkpoint(seed=4))
    act(server, pull_id, "resume")
    assert until(server, pull_id, "failed")["problem"]["cause"] == "revision_not_found"
    act(server, pull_id, "resume")
    assert until(server, pull_id, "completed")["commit"] == newest


def test_a_file_that_is_gone_fails_and_resume_asks_for_the_list_again(
    serve: Serve, hub: LocalHub
) -> None:
    commit = hub.commit(REPO, checkpoint(2 * MIB, shards=2))
    files = hub.repos[REPO].commits[commit]
    first = "model-00001-of-00002.safetensors"
    hub.spoil(first, Fault(hold_at=MIB))
    server = serve("[pulls]\nconnections = 1\n")
    pull_id = pull(server)
    hub.wait_until_held()
    until_done(server, pull_id, MIB - MIB // 3)
    act(server, pull_id, "pause")
    gone = files.pop("model-00002-of-00002.safetensors")
    act(server, pull_id, "resume")
    assert until(server, pull_id, "failed")["problem"]["cause"] == "files_changed"
    assert known_models(server) == []
    files["model-00002-of-00002.safetensors"] = gone
    act(server, pull_id, "resume")
    until(server, pull_id, "completed")
    assert hub.sent(first) < 2.5 * MIB


def test_a_gated_repository_needs_a_token_of_the_right_account(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    hub.gate(REPO, "hf_topsecret")
    server = serve(HF_DEBUG="1")
    pull_id = pull(server)
    problem = until(server, pull_id, "failed")["problem"]
    token_file = server.paths.state / "hub-token"
    assert problem["cause"] == "gated"
    assert f"{hub.url}/{REPO}" in problem["hint"]
    assert str(token_file) in problem["hint"]
    token_file.write_text("hf_topsecret\n")
    token_file.chmod(0o644)
    act(server, pull_id, "resume")
    assert "chmod 600" in until(server, pull_id, "failed")["problem"]["hint"]
    token_file.chmod(0o600)
    act(server, pull_id, "resume")
    until(server, pull_id, "completed")
    server.stop()
    said = server.log.read_text() + str(server.paths.database.read_bytes())
    assert "hf_topsecret" not in said


def test_too_little_space_is_known_before_the_first_weight(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    server = serve('[pulls]\ndisk_reserve = "1024TiB"\n')
    pull_id = pull(server)
    problem = until(server, pull_id, "failed")["problem"]
    assert problem["cause"] == "insufficient_storage"
    assert "2 MiB are still to be fetched" in problem["message"]
    assert hub.sent(WEIGHTS) == 0


def test_a_full_disk_stops_the_pull_and_room_lets_it_go_on(
    serve: Serve, hub: LocalHub, tmp_path: Path
) -> None:
    hub.commit(REPO, checkpoint(6 * MIB))
    hub.spoil(WEIGHTS, Fault(hold_at=2 * MIB))
    with small_disk(tmp_path / "disk", "8m") as disk:
        server = serve("[pulls]\ndisk_reserve = 0\n", HF_HUB_CACHE=str(disk / "cache"))
        pull_id = pull(server)
        hub.wait_until_held()
        until_done(server, pull_id, int(1.5 * MIB))
        other = disk / "other"
        other.write_bytes(b"\1" * 4 * MIB)
        hub.go_on()
        failed = until(server, pull_id, "failed")
        assert failed["problem"]["cause"] == "insufficient_storage"
        assert known_models(server) == []
        other.unlink()
        act(server, pull_id, "resume")
        until(server, pull_id, "completed")
        server.stop()


def test_only_so_many_run_at_once(serve: Serve, hub: LocalHub) -> None:
    for number in range(3):
        hub.commit(f"acme/m{number}", checkpoint(2 * MIB, seed=number * 10))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB), Fault(hold_at=MIB))
    server = serve("[pulls]\nparallel = 2\n")
    ids = [pull(server, f"acme/m{number}") for number in range(3)]
    hub.wait_until_held()
    hub.wait_until_held()
    assert [view(server, each)["state"] for each in ids] == ["running", "running", "queued"]
    hub.go_on()
    for each in ids:
        until(server, each, "completed")


def test_people_hear_of_each_state_and_of_progress(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    server = serve()
    recorder = Recorder(server)
    pull_id = pull(server)
    until(server, pull_id, "completed")
    wait_until(lambda: recorder.of("pull")[-1]["pull"]["state"] == "completed")
    seen = [(each["pull"]["state"], each["pull"]["phase"]) for each in recorder.of("pull")]
    steps = list(dict.fromkeys(seen))
    assert steps == [
        ("queued", None), ("running", "listing"), ("running", "fetching"),
        ("running", "adding"), ("completed", None),
    ]  # fmt: skip
    assert [each["id"] for each in server.state()["pulls"]] == [pull_id]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"repo": "small"}, 400),
        ({"repo": "../../etc"}, 400),
        ({"repo": REPO, "revision": "../x"}, 400),
        ({"repo": REPO, "name": "a b"}, 400),
        ({"repo": REPO, "branch": "x"}, 400),
    ],
)
def test_what_cannot_be_pulled_is_refused_at_once(
    serve: Serve, body: dict[str, Any], status: int
) -> None:
    assert serve().admin("POST", "/pulls", body).status_code == status


def test_another_model_of_that_name_is_not_replaced(
    serve: Serve, hub: LocalHub, make_model: MakeModel
) -> None:
    hub.commit(REPO, checkpoint())
    server = serve()
    server.add_model(REPO, make_model("mine"))
    assert server.admin("POST", "/pulls", {"repo": REPO}).status_code == 409


def test_two_pulls_do_not_get_one_name(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    hub.spoil(WEIGHTS, Fault(hold_at=1000))
    server = serve()
    pull_id = pull(server, name="one")
    assert pull(server, name="one") == pull_id
    for other in ({"repo": "acme/other", "name": "one"}, {"repo": REPO, "name": "two"}):
        assert server.admin("POST", "/pulls", other).status_code == 409


def test_pulls_that_only_fit_one_by_one_do_not_run_together(
    serve: Serve, hub: LocalHub, tmp_path: Path
) -> None:
    hub.commit(REPO, checkpoint(5 * MIB))
    hub.commit("acme/other", checkpoint(5 * MIB, seed=3))
    hub.spoil(WEIGHTS, Fault(hold_at=MIB))
    with small_disk(tmp_path / "disk", "8m") as disk:
        server = serve("[pulls]\ndisk_reserve = 0\n", HF_HUB_CACHE=str(disk / "cache"))
        first = pull(server)
        hub.wait_until_held()
        second = pull(server, "acme/other")
        failed = until(server, second, "failed")
        assert failed["problem"]["cause"] == "insufficient_storage"
        assert "9 MiB are still to be fetched" in failed["problem"]["message"]
        hub.go_on()
        until(server, first, "completed")
        server.stop()


def test_acting_on_what_is_over_is_refused(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    server = serve()
    pull_id = pull(server)
    until(server, pull_id, "completed")
    for action in ("pause", "resume", "cancel"):
        assert server.admin("POST", f"/pulls/{pull_id}/{action}").status_code == 409
    assert server.admin("POST", "/pulls/pull_none/pause").status_code == 404
    assert server.admin("POST", f"/pulls/{pull_id}/dance").status_code == 400


def test_offline_mode_is_named(serve: Serve, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    server = serve(HF_HUB_OFFLINE="1")
    assert until(server, pull(server), "failed")["problem"]["cause"] == "offline"
