"""The program that fetches, with the real client, from a hub on this machine."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import msgspec
import pytest

from appliance.hub.cache import RepoCache
from appliance.hub.messages import Fetched, Going, Listed, Message, Order, Stopped
from appliance.protocol.pulls import PullCause, PullFile
from tests.support.checkpoints import checkpoint
from tests.support.hub import Fault, LocalHub
from tests.support.wait import wait_until

REPO = "acme/small"
MIB = 1 << 20


class Fetcher:
    """Orders for one cache."""

    def __init__(self, hub: LocalHub, root: Path) -> None:
        self.hub = hub
        self.cache = RepoCache(root=root, repo=REPO)
        # Held requests are held for as long as the test wants.
        self.timeout = {"HF_HUB_DOWNLOAD_TIMEOUT": "120"}
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, **order: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.hub.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment(),
        )
        self.running.append(process)
        values = {"repo": REPO, "cache": str(self.cache.root), "token_source": "HF_TOKEN"} | order
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(Order(**values)) + b"\n")
        process.stdin.flush()
        return process

    def environment(self) -> dict[str, str]:
        known = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_XET": "1"}
        return known | ours | {"HF_HUB_ETAG_TIMEOUT": "2"} | self.timeout

    def messages(self, **order: Any) -> list[Message]:
        process = self.start(**order)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert process.wait(30) == 0
        return [msgspec.json.decode(line, type=Message) for line in lines]

    def listed(self, **order: Any) -> Listed:
        message = self.messages(**order)[-1]
        assert isinstance(message, Listed), message
        return message

    def fetch(self, listed: Listed, **order: Any) -> Message:
        return self.messages(commit=listed.commit, files=listed.files, **order)[-1]

    def partial_bytes(self, file: PullFile) -> int:
        path = self.cache.partial(file)
        return path.stat().st_size if path.exists() else 0


@pytest.fixture
def fetcher(hub: LocalHub, tmp_path: Path) -> Iterator[Fetcher]:
    fetcher = Fetcher(hub, tmp_path / "cache")
    yield fetcher
    for process in fetcher.running:
        process.kill()
        process.wait(10)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def weights_of(listed: Listed) -> PullFile:
    return next(file for file in listed.files if file.path.endswith(".safetensors"))


def test_the_real_client_finds_what_was_fetched(fetcher: Fetcher, hub: LocalHub) -> None:
    files = checkpoint(MIB)
    commit = hub.commit(REPO, files)
    listed = fetcher.listed()
    assert listed.commit == commit
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {file.path for file in listed.files} == wanted
    result = fetcher.fetch(listed)
    assert isinstance(result, Fetched)
    found = huggingface_hub.snapshot_download(
        REPO, cache_dir=fetcher.cache.root, local_files_only=True
    )
    assert found == result.path == str(fetcher.cache.snapshot(commit))
    assert {path.name for path in Path(found).iterdir()} == wanted
    assert all((Path(found) / name).read_bytes() == files[name] for name in wanted)
    assert [path.name for path in fetcher.cache.blobs.glob("*incomplete")] == []


def test_what_the_real_client_fetched_is_not_fetched_again(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    code = (
        "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], cache_dir=sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, REPO, str(fetcher.cache.root)],
        env=fetcher.environment(), check=True, capture_output=True,
    )  # fmt: skip
    sent = hub.sent("model.safetensors")
    assert sent > MIB
    assert isinstance(fetcher.fetch(fetcher.listed()), Fetched)
    assert hub.sent("model.safetensors") == sent


def test_the_token_is_shown_to_the_hub_alone(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    hub.gate(REPO, "hf_secret")
    listed = fetcher.listed(token="hf_secret")
    assert isinstance(fetcher.fetch(listed, token="hf_secret"), Fetched)
    to_cdn = [each for each in hub.asked if each.path.startswith("/cdn/")]
    assert to_cdn
    assert {each.authorization for each in to_cdn} == {None}


def test_a_cut_connection_goes_on_where_it_ended(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    hub.spoil("model.safetensors", Fault(cut_at=3 * MIB))
    assert isinstance(fetcher.fetch(fetcher.listed()), Fetched)
    assert hub.sent("model.safetensors") < 4.5 * MIB


def test_a_connection_that_stalls_is_given_up_and_gone_on_with(
    fetcher: Fetcher, hub: LocalHub
) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    hub.spoil("model.safetensors", Fault(hold_at=MIB))
    fetcher.timeout = {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    assert isinstance(fetcher.fetch(fetcher.listed()), Fetched)
    assert hub.sent("model.safetensors") < 2.5 * MIB


def test_two_processes_fetch_what_they_share_once(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(2 * MIB))
    listed = fetcher.listed()
    hub.spoil("model.safetensors", Fault(hold_at=MIB))
    first, second = (
        fetcher.start(commit=listed.commit, files=listed.files, workers=1) for _ in range(2)
    )
    hub.wait_until_held()
    hub.go_on()
    assert first.wait(30) == second.wait(30) == 0
    for process in (first, second):
        assert process.stdout is not None
        last = process.stdout.read().splitlines()[-1]
        assert isinstance(msgspec.json.decode(last, type=Message), Fetched)
    assert hub.sent("model.safetensors") < 2.1 * MIB


@pytest.mark.parametrize("seed", range(3))
def test_cuts_anywhere_cost_less_than_a_piece_each(
    fetcher: Fetcher, hub: LocalHub, seed: int
) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    cuts = sorted(random.Random(seed).sample(range(4 * MIB), 3))
    hub.spoil("model.safetensors", *(Fault(cut_at=place) for place in cuts))
    assert isinstance(fetcher.fetch(fetcher.listed()), Fetched)
    assert hub.sent("model.safetensors") < 4 * MIB + 1000 + 3 * (MIB // 4 + 1)


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(
    fetcher: Fetcher, hub: LocalHub
) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    listed = fetcher.listed()
    hub.spoil("model.safetensors", Fault(hold_at=3 * MIB))
    process = fetcher.start(commit=listed.commit, files=listed.files)
    hub.wait_until_held()
    file = weights_of(listed)
    wait_until(lambda: fetcher.partial_bytes(file) > 2.5 * MIB)
    process.kill()
    process.wait(10)
    assert not fetcher.cache.snapshot(listed.commit).exists()
    assert isinstance(fetcher.fetch(listed), Fetched)
    assert hub.sent("model.safetensors") < 4.6 * MIB


def test_the_process_ends_with_its_server(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    hub.spoil("model.safetensors", Fault(hold_at=1000))
    process = fetcher.start(commit=listed.commit, files=listed.files)
    hub.wait_until_held()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 1


def test_wrong_bytes_never_get_a_name(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    hub.spoil("model.safetensors", Fault(wrong=True))
    result = fetcher.fetch(listed)
    assert isinstance(result, Stopped)
    assert result.problem.cause is PullCause.WRONG_HASH
    file = weights_of(listed)
    assert not fetcher.cache.blob(file).exists()
    assert not fetcher.cache.partial(file).exists()
    assert not fetcher.cache.snapshot(listed.commit).exists()
    assert isinstance(fetcher.fetch(listed), Fetched)


def test_a_file_that_is_longer_than_listed_is_wrong(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    hub.spoil("model.safetensors", Fault(longer=MIB))
    result = fetcher.fetch(listed)
    assert isinstance(result, Stopped)
    assert result.problem.cause is PullCause.WRONG_HASH
    assert not fetcher.cache.partial(weights_of(listed)).exists()
    assert isinstance(fetcher.fetch(listed), Fetched)


def test_what_ends_too_early_is_gone_on_with(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    hub.spoil("model.safetensors", Fault(longer=-1000))
    result = fetcher.fetch(listed)
    assert isinstance(result, Stopped)
    assert result.is_transient
    assert isinstance(fetcher.fetch(listed), Fetched)
    assert hub.sent("model.safetensors") < 1.1 * MIB


def test_a_torn_partial_file_is_fetched_anew(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    file = weights_of(listed)
    fetcher.cache.blobs.mkdir(parents=True)
    fetcher.cache.partial(file).write_bytes(b"\0" * 5000)
    assert isinstance(fetcher.fetch(listed), Fetched)


def test_a_spoilt_blob_is_replaced(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    file = weights_of(listed)
    fetcher.cache.blobs.mkdir(parents=True)
    fetcher.cache.blob(file).write_bytes(b"\0" * file.size_bytes)
    result = fetcher.fetch(listed)
    assert isinstance(result, Fetched)
    assert (Path(result.path) / file.path).read_bytes()[:1] != b"\0"


def test_a_branch_that_moves_meanwhile_changes_nothing(fetcher: Fetcher, hub: LocalHub) -> None:
    commit = hub.commit(REPO, checkpoint(MIB))
    listed = fetcher.listed()
    hub.commit(REPO, checkpoint(MIB, seed=7))
    result = fetcher.fetch(listed)
    assert isinstance(result, Fetched)
    assert result.path == str(fetcher.cache.snapshot(commit))


def test_the_same_content_under_two_names_is_fetched_once(fetcher: Fetcher, hub: LocalHub) -> None:
    files = checkpoint(MIB)
    hub.commit(REPO, files | {"1_Same/model.safetensors": files["model.safetensors"]})
    result = fetcher.fetch(fetcher.listed())
    assert isinstance(result, Fetched)
    assert (Path(result.path) / "1_Same/model.safetensors").exists()
    assert sum(each.sent for each in hub.asked) < 1.5 * MIB


def test_progress_counts_what_was_there(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint(4 * MIB))
    listed = fetcher.listed()
    file = weights_of(listed)
    data = hub.repos[REPO].commits[listed.commit][file.path].data
    fetcher.cache.blobs.mkdir(parents=True)
    fetcher.cache.partial(file).write_bytes(data[: 3 * MIB])
    messages = fetcher.messages(commit=listed.commit, files=listed.files)
    going = [message for message in messages if isinstance(message, Going)]
    assert going[-1].done_bytes == sum(each.size_bytes for each in listed.files)
    assert going[-1].received_bytes < 1.5 * MIB


@pytest.mark.parametrize(
    ("order", "prepare", "cause", "words"),
    [
        ({}, lambda hub: hub.gate(REPO, "hf_a"), PullCause.GATED, "acme/small"),
        (
            {"token": "hf_b"},
            lambda hub: (hub.gate(REPO, "hf_a"), hub.tokens.add("hf_b")),
            PullCause.GATED,
            "has no access",
        ),
        ({"token": "hf_bad"}, lambda _: None, PullCause.UNAUTHORIZED, "HF_TOKEN"),
        ({"repo": "acme/none"}, lambda _: None, PullCause.NOT_FOUND, "acme/none"),
        ({"revision": "v9"}, lambda _: None, PullCause.REVISION_NOT_FOUND, "'v9'"),
        ({}, lambda hub: hub.repos[REPO].commits.clear(), PullCause.REVISION_NOT_FOUND, ""),
        ({}, lambda hub: setattr(hub, "status", 503), PullCause.HUB, "503"),
        ({}, lambda hub: hub.go_away(), PullCause.NETWORK, "127.0.0.1"),
        ({}, lambda hub: setattr(hub, "is_silent", True), PullCause.NETWORK, "127.0.0.1"),
        (
            {},
            lambda hub: hub.commit(REPO, {"model.gguf": b"GGUF"}),
            PullCause.UNSUPPORTED,
            "config.json",
        ),
        (
            {},
            lambda hub: hub.commit(REPO, checkpoint() | {"/evil.json": b"{}"}),
            PullCause.UNSUPPORTED,
            "evil.json",
        ),
    ],
)
def test_each_refusal_is_named(
    fetcher: Fetcher, hub: LocalHub, order: Any, prepare: Any, cause: PullCause, words: str
) -> None:
    hub.commit(REPO, checkpoint())
    prepare(hub)
    stopped = fetcher.messages(**order)[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.problem.cause is cause
    assert words in stopped.problem.message
    assert stopped.problem.hint
    assert stopped.is_transient == (cause in {PullCause.HUB, PullCause.NETWORK})


def test_a_gated_repository_names_the_page_where_access_is_asked_for(
    fetcher: Fetcher, hub: LocalHub
) -> None:
    hub.commit(REPO, checkpoint())
    hub.gate(REPO, "hf_a")
    stopped = fetcher.messages()[-1]
    assert isinstance(stopped, Stopped)
    assert f"{hub.url}/{REPO}" in stopped.problem.hint
    assert "HF_TOKEN" in stopped.problem.hint


def test_a_cache_that_cannot_be_written_is_named(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    stopped = fetcher.fetch(fetcher.listed(), cache="/dev/null/cache")
    assert isinstance(stopped, Stopped)
    assert stopped.problem.cause is PullCause.CANNOT_WRITE
    assert "/dev/null/cache" in stopped.problem.message


def test_a_commit_that_is_gone_is_named(fetcher: Fetcher, hub: LocalHub) -> None:
    hub.commit(REPO, checkpoint())
    listed = fetcher.listed()
    hub.repos[REPO].commits.clear()
    hub.commit(REPO, checkpoint(seed=3))
    stopped = fetcher.fetch(listed)
    assert isinstance(stopped, Stopped)
    assert stopped.problem.cause is PullCause.REVISION_NOT_FOUND


def test_a_file_that_is_gone_is_named(fetcher: Fetcher, hub: LocalHub) -> None:
    commit = hub.commit(REPO, checkpoint())
    listed = fetcher.listed()
    del hub.repos[REPO].commits[commit]["model.safetensors"]
    stopped = fetcher.fetch(listed)
    assert isinstance(stopped, Stopped)
    assert stopped.problem.cause is PullCause.FILES_CHANGED


def test_an_index_that_names_too_much_is_refused_before_the_first_weight(
    fetcher: Fetcher, hub: LocalHub
) -> None:
    files = checkpoint(MIB, shards=3)
    del files["model-00002-of-00003.safetensors"]
    hub.commit(REPO, files)
    stopped = fetcher.messages()[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.problem.cause is PullCause.UNSUPPORTED
    assert "model-00002-of-00003.safetensors" in stopped.problem.message
    assert sum(each.sent for each in hub.asked) < 10_000
