from pathlib import Path
from typing import get_type_hints

import pytest

from appliance.config.load import is_loopback, load_settings
from appliance.config.settings import Settings
from appliance.errors import ConfigError
from appliance.protocol.devices import DeviceSource


def write(directory: Path, text: str) -> Path:
    file = directory / "config.toml"
    file.write_text(text)
    return file


def keys_with(suffix: str) -> list[str]:
    """`table.key` of each setting that has a property with its value in bytes or seconds."""
    return [
        f"{table}.{name.removesuffix(suffix)}"
        for table, section in get_type_hints(Settings).items()
        for name, value in vars(section).items()
        if isinstance(value, property) and name.endswith(suffix)
    ]


SIZE_KEYS = keys_with("_bytes")
DURATION_KEYS = keys_with("_s")


def test_there_are_sizes_and_durations_to_check() -> None:
    assert "server.max_body" in SIZE_KEYS
    assert "slots.idle_timeout" in DURATION_KEYS


def test_without_any_source_the_defaults_count(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "none.toml", environ={})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.devices.source is None


def test_defaults_are_readable() -> None:
    settings = Settings()
    assert settings.server.max_body_bytes == 64 * 1024**2
    assert settings.server.drain_timeout_s == 30.0
    assert settings.slots.idle_timeout_s == 900.0
    assert settings.devices.cpu_memory_bytes is None


def test_environment_goes_before_the_file_and_flags_before_both(tmp_path: Path) -> None:
    file = write(tmp_path, '[server]\nhost = "10.0.0.1"\nport = 1\nlog_level = "debug"\n')
    environ = {"APPLIANCE_SERVER_PORT": "2", "APPLIANCE_SERVER_LOG_LEVEL": "error"}
    settings = load_settings(file, environ=environ, flags={"server.log_level": "warning"})
    assert settings.server.host == "10.0.0.1"
    assert settings.server.port == 2
    assert settings.server.log_level == "warning"


def test_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nport = 9000\n")
    assert load_settings(file, environ={}, flags={"server.port": None}).server.port == 9000


def test_environment_sets_each_kind_of_value(tmp_path: Path) -> None:
    environ = {
        "APPLIANCE_SERVER_REQUIRE_KEYS": "true",
        "APPLIANCE_SERVER_MAX_BODY": "1MiB",
        "APPLIANCE_SLOTS_MAX_QUEUE": "7",
        "APPLIANCE_SLOTS_IDLE_TIMEOUT": "never",
        "APPLIANCE_DEVICES_SOURCE": "cpu",
        "APPLIANCE_HOME": "/somewhere",
        "UNRELATED": "1",
    }
    settings = load_settings(tmp_path / "none.toml", environ=environ)
    assert settings.server.require_keys is True
    assert settings.server.max_body_bytes == 1024**2
    assert settings.slots.max_queue == 7
    assert settings.slots.idle_timeout_s == -1.0
    assert settings.devices.source is DeviceSource.CPU


def test_simulated_devices_are_read_from_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[[devices.simulated]]\nmemory = "8GiB"\n'
        '[[devices.simulated]]\nmemory = 1024\nname = "B"\n',
    )
    first, second = load_settings(file, environ={}).devices.simulated
    assert (first.memory_bytes, first.name) == (8 * 1024**3, "Simulated GPU")
    assert (second.memory_bytes, second.name) == (1024, "B")


@pytest.mark.parametrize("key", SIZE_KEYS)
@pytest.mark.parametrize("bad", ["8 gallons", "never", "-1GiB"])
def test_every_size_is_checked_when_it_is_loaded(tmp_path: Path, key: str, bad: str) -> None:
    with pytest.raises(ConfigError, match="is no size") as caught:
        load_settings(tmp_path / "none.toml", environ={}, flags={key: bad})
    assert key in caught.value.message


@pytest.mark.parametrize("key", SIZE_KEYS)
def test_every_size_may_be_written_with_a_unit(tmp_path: Path, key: str) -> None:
    settings = load_settings(tmp_path / "none.toml", environ={}, flags={key: "3MiB"})
    table, name = key.split(".")
    assert getattr(getattr(settings, table), f"{name}_bytes") == 3 * 1024**2


@pytest.mark.parametrize("key", DURATION_KEYS)
@pytest.mark.parametrize("bad", ["soon", "10 minutes", ""])
def test_every_duration_is_checked_when_it_is_loaded(tmp_path: Path, key: str, bad: str) -> None:
    with pytest.raises(ConfigError, match="is no duration") as caught:
        load_settings(tmp_path / "none.toml", environ={}, flags={key: bad})
    assert key in caught.value.message


@pytest.mark.parametrize("key", DURATION_KEYS)
@pytest.mark.parametrize("written", ["2m", 120, "120"])
def test_every_duration_may_be_written_with_or_without_a_unit(
    tmp_path: Path, key: str, written: str | int
) -> None:
    settings = load_settings(tmp_path / "none.toml", environ={}, flags={key: written})
    table, name = key.split(".")
    assert getattr(getattr(settings, table), f"{name}_s") == 120.0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "[srever]\nport = 1\n",
            ["srever", "no such table", "server, slots, engines, batches, devices"],
        ),
        ("[server]\nprot = 1\n", ["server.prot", "no such key", "port"]),
        ("server = 3\n", ["server", "must be a table", "[server]"]),
        ("[server]\nport = 70000\n", ["server.port", "65535"]),
        ('[server]\nport = "many"\n', ["server.port", "int"]),
        ("[slots]\nmax_queue = 0\n", ["slots.max_queue", "1"]),
        ('[server]\nlog_level = "loud"\n', ["server.log_level", "debug, info, warning, error"]),
        ('[devices]\nsource = "tpu"\n', ["devices.source", "allowed: nvml, cpu, simulated"]),
        ('[server]\nrequire_keys = "maybe"\n', ["server.require_keys"]),
        ('[[devices.simulated]]\nmemory = "huge"\n', ["devices.simulated", "'huge' is no size"]),
        ('[[devices.simulated]]\nmemroy = "1GiB"\n', ["devices.simulated", "memroy"]),
        ("[server\nport = 1\n", ["no valid TOML", "line 1"]),
    ],
)
def test_error_in_the_file_names_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={})
    for part in [str(file), *parts]:
        assert part in caught.value.message
    assert caught.value.hint


def test_error_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"APPLIANCE_SERVER_PORT: server\.port"):
        load_settings(tmp_path / "none.toml", environ={"APPLIANCE_SERVER_PORT": "x"})


def test_misspelt_variable_of_a_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        load_settings(tmp_path / "none.toml", environ={"APPLIANCE_SERVER_PROT": "1"})


def test_error_in_a_flag_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flag --drain-timeout: server\.drain_timeout"):
        load_settings(tmp_path / "none.toml", environ={}, flags={"server.drain_timeout": "soon"})


def test_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(file, environ={})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
