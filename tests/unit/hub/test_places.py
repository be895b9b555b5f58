from pathlib import Path

import pytest

from appliance.config.paths import find_paths
from appliance.config.settings import PullSettings
from appliance.errors import InvalidRequestError
from appliance.hub.names import check_repo, check_revision, parse_source
from appliance.hub.places import Places, find_cache, find_token


@pytest.mark.parametrize(
    ("setting", "env", "expected"),
    [
        ("/s", {"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/s"),
        (None, {"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
        (None, {"HF_HOME": "/h", "APPLIANCE_HOME": "/a"}, "/h/hub"),
        (None, {"APPLIANCE_HOME": "/a", "HOME": "/u"}, "/a/state/hub"),
        (None, {"STATE_DIRECTORY": "/var/lib/x", "HOME": "/u"}, "/var/lib/x/hub"),
        (None, {"HOME": "/u"}, "/u/.cache/huggingface/hub"),
        (None, {"HOME": "/u", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    ],
)
def test_the_cache_is_the_shared_one(
    setting: str | None, env: dict[str, str], expected: str
) -> None:
    assert find_cache(PullSettings(cache=setting), find_paths(env), env) == Path(expected)


def token_of(home: Path, **env: str) -> tuple[str | None, str]:
    env = {"APPLIANCE_HOME": str(home), "HOME": str(home)} | env
    token = find_token(PullSettings(), find_paths(env), env)
    return token.value, token.source


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_token_is_looked_for_in_this_order(tmp_path: Path) -> None:
    value, source = token_of(tmp_path)
    assert value is None
    assert "state/hub-token" in source
    login = write(tmp_path / ".cache/huggingface/token", "hf_login\n")
    assert token_of(tmp_path) == ("hf_login", str(login))
    own = write(tmp_path / "state/hub-token", "hf_own\n")
    assert token_of(tmp_path) == ("hf_own", str(own))
    assert token_of(tmp_path, HF_TOKEN="hf_env") == ("hf_env", "HF_TOKEN")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_token_that_others_may_read_is_not_used(tmp_path: Path, mode: int) -> None:
    own = write(tmp_path / "state/hub-token", "hf_own\n", mode)
    value, source = token_of(tmp_path)
    assert value is None
    assert f"chmod 600 {own}" in source


def test_a_token_is_never_printed(tmp_path: Path) -> None:
    env = {"APPLIANCE_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    places = Places(settings=PullSettings(), paths=find_paths(env), env=env)
    order = places.order("acme/small", None)
    assert order.token == "hf_secret"
    assert "hf_secret" not in repr(order) + str(order)
    assert "hf_secret" not in repr(find_token(places.settings, places.paths, env))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/small", ("acme/small", None)),
        ("acme/small@v1", ("acme/small", "v1")),
        ("https://huggingface.co/acme/small", ("acme/small", None)),
        ("hf.co/acme/small/tree/refs/pr/1", ("acme/small", "refs/pr/1")),
        ("hf://acme/small@main", ("acme/small", "main")),
    ],
)
def test_names_as_people_write_them(text: str, expected: tuple[str, str | None]) -> None:
    assert parse_source(text) == expected
    check_repo(expected[0])
    check_revision(expected[1])


@pytest.mark.parametrize("repo", ["small", "a/b/c", "../x", "a/..", "a/b--c", "/a/b", "a b/c", ""])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_repo(repo)


@pytest.mark.parametrize("revision", ["../x", "a//b", "/a", "a/", "a b", "", "-x", "a/../b"])
def test_what_is_no_revision_is_refused(revision: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_revision(revision)
