import os
import stat
import tempfile
from pathlib import Path

import pytest

from appliance.config.paths import Paths, find_paths
from appliance.errors import ConfigError


def below(root: Path) -> Paths:
    return Paths(
        config_file=root / "config.toml",
        state=root / "state",
        run=root / "run",
        logs=root / "logs",
        cache=root / "cache",
    )


def test_everything_is_below_the_home_where_one_is_set() -> None:
    paths = find_paths({"APPLIANCE_HOME": "/srv/a", "STATE_DIRECTORY": "/x", "HOME": "/home/u"})
    assert paths == Paths(
        config_file=Path("/srv/a/config/config.toml"),
        state=Path("/srv/a/state"),
        run=Path("/srv/a/run"),
        logs=Path("/srv/a/logs"),
        cache=Path("/srv/a/cache"),
    )


def test_directories_of_systemd_are_taken() -> None:
    paths = find_paths(
        {
            "STATE_DIRECTORY": "/var/lib/a",
            "CONFIGURATION_DIRECTORY": "/etc/a",
            "RUNTIME_DIRECTORY": "/run/a",
            "LOGS_DIRECTORY": "/var/log/a",
            "CACHE_DIRECTORY": "/var/cache/a",
            "HOME": "/home/u",
            "XDG_RUNTIME_DIR": "/run/user/1",
        }
    )
    assert paths == Paths(
        config_file=Path("/etc/a/config.toml"),
        state=Path("/var/lib/a"),
        run=Path("/run/a"),
        logs=Path("/var/log/a"),
        cache=Path("/var/cache/a"),
    )


def test_directories_that_systemd_left_out_have_the_usual_names() -> None:
    paths = find_paths({"STATE_DIRECTORY": "/var/lib/vllm-appliance"})
    assert paths.config_file == Path("/etc/vllm-appliance/config.toml")
    assert paths.run == Path("/run/vllm-appliance")
    assert paths.logs == Path("/var/log/vllm-appliance")


def test_user_without_any_variables_gets_the_xdg_defaults() -> None:
    paths = find_paths({"HOME": "/home/u"})
    assert paths == Paths(
        config_file=Path("/home/u/.config/vllm-appliance/config.toml"),
        state=Path("/home/u/.local/state/vllm-appliance"),
        run=Path("/home/u/.local/state/vllm-appliance/run"),
        logs=Path("/home/u/.local/state/vllm-appliance/logs"),
        cache=Path("/home/u/.cache/vllm-appliance"),
    )


def test_xdg_variables_are_followed() -> None:
    paths = find_paths(
        {
            "HOME": "/home/u",
            "XDG_CONFIG_HOME": "/c",
            "XDG_STATE_HOME": "/s",
            "XDG_CACHE_HOME": "/k",
            "XDG_RUNTIME_DIR": "/run/user/1000",
        }
    )
    assert paths.config_file == Path("/c/vllm-appliance/config.toml")
    assert paths.state == Path("/s/vllm-appliance")
    assert paths.cache == Path("/k/vllm-appliance")
    assert paths.run == Path("/run/user/1000/vllm-appliance")


@pytest.mark.parametrize(
    "layout", [{"APPLIANCE_HOME": "/a"}, {"STATE_DIRECTORY": "/a"}, {"HOME": "/a"}]
)
def test_config_file_can_be_named_in_every_layout(layout: dict[str, str]) -> None:
    assert find_paths({**layout, "APPLIANCE_CONFIG": "/my.toml"}).config_file == Path("/my.toml")


@pytest.mark.parametrize("length", range(20, 120, 3))
def test_sockets_can_be_bound_however_long_the_home_is(length: int) -> None:
    home = f"/{'h' * length}"
    run = find_paths({"APPLIANCE_HOME": home}).run
    longest = run / "engines" / "eng_0123456789abcdef.sock"
    assert len(os.fsencode(longest)) <= 107
    if len(os.fsencode(f"{home}/run/engines/eng_0123456789abcdef.sock")) <= 107:
        assert run == Path(home, "run")


def test_short_directory_is_the_same_each_time_and_differs_between_homes() -> None:
    first, second = (find_paths({"APPLIANCE_HOME": f"/{'h' * 200}/{name}"}).run for name in "ab")
    assert first == find_paths({"APPLIANCE_HOME": f"/{'h' * 200}/a"}).run
    assert first != second
    assert first.parent == Path(tempfile.gettempdir())


def test_created_directories_are_closed_to_others(tmp_path: Path) -> None:
    paths = below(tmp_path)
    paths.create()
    paths.create()
    for directory in (paths.state, paths.run, paths.logs, paths.cache, paths.engine_environments):
        assert directory.is_dir()
        assert not stat.S_IMODE(directory.stat().st_mode) & 0o007
    assert stat.S_IMODE(paths.engine_records.stat().st_mode) & 0o077 == 0


def test_files_have_their_places(tmp_path: Path) -> None:
    paths = below(tmp_path)
    assert paths.database == tmp_path / "state/appliance.db"
    assert paths.admin_socket == tmp_path / "run/admin.sock"
    assert paths.lock.parent == paths.run
    assert paths.engine_logs == tmp_path / "logs/engines"
    assert paths.models == tmp_path / "state/models"


def test_runtime_directory_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    paths = below(tmp_path)
    paths.run.mkdir()
    paths.run.chmod(0o777)
    with pytest.raises(ConfigError, match="Everybody may write") as caught:
        paths.create()
    assert str(paths.run) in caught.value.hint


def test_runtime_directory_behind_a_link_is_refused(tmp_path: Path) -> None:
    paths = below(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    paths.run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="belongs to another user"):
        paths.create()
