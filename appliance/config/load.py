"""Settings from their sources: defaults, then the TOML file, the environment, the flags.

The environment names a key as `APPLIANCE_<TABLE>_<KEY>`, for example `APPLIANCE_SERVER_PORT`.
"""

import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from appliance.config.settings import Settings
from appliance.errors import ConfigError
from appliance.units import parse_duration, parse_size

_PREFIX = "APPLIANCE_"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_SIZE_KEYS = {
    "cpu_memory", "disk_reserve", "log_size", "max_body", "max_file", "max_line", "memory",
    "reserve", "sleep_memory",
}  # fmt: skip
_DURATION_KEYS = {
    "answer_timeout", "batch_max_wait", "batch_turn", "drain_timeout", "drain_limit",
    "frozen_timeout", "give_up", "hang_timeout", "heartbeat", "idle_timeout", "max_keep_alive",
    "max_wait", "min_loaded", "queue_timeout", "stall_timeout", "stop_timeout", "retry_first",
    "retry_most", "sample_interval", "sleep_timeout", "asleep_timeout", "freeing_timeout",
}  # fmt: skip
_NEVER_KEYS = {"idle_timeout", "max_keep_alive", "asleep_timeout"}
_MOST_SECONDS = 10 * 365 * 86400.0


def load_settings(
    file: Path,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Merge all sources. `flags` maps `table.key` to a value; None values count as not given.

    Raises ConfigError that names the source, the key and what is allowed.
    """
    merged: dict[str, dict[str, Any]] = {}
    if file.exists():
        _merge(merged, _read(file), f"{file}")
    for (table, key), text in _from_environment(os.environ if environ is None else environ):
        variable = f"{_PREFIX}{table}_{key}".upper()
        _merge(merged, {table: {key: text}}, f"environment variable {variable}")
    for dotted, value in (flags or {}).items():
        if value is not None:
            table, key = dotted.split(".")
            _merge(merged, {table: {key: value}}, f"flag --{key.replace('_', '-')}")
    return msgspec.convert(merged, Settings, strict=False)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file} is no valid TOML: {error}.", hint="Correct the line that it names."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}.", hint="Check its owner and rights."
        ) from error


def _merge(merged: dict[str, dict[str, Any]], new: dict[str, Any], source: str) -> None:
    """Put `new` over `merged`, and check each key by itself so that an error can name it."""
    tables = get_type_hints(Settings)
    for table, values in new.items():
        if table not in tables:
            raise _wrong(source, table, f"no such table; there are: {', '.join(tables)}")
        if not isinstance(values, dict):
            raise _wrong(source, table, f"must be a table: write it as [{table}]")
        fields = get_type_hints(tables[table], include_extras=True)
        for key, value in values.items():
            name = f"{table}.{key}"
            if key not in fields:
                raise _wrong(source, name, f"no such key; there are: {', '.join(fields)}")
            _check(source, name, value, fields[key])
            merged.setdefault(table, {})[key] = value


def _check(source: str, name: str, value: object, hint: Any) -> None:
    try:
        converted = msgspec.convert(value, hint, strict=False)
        _check_text(name, converted)
    except (msgspec.ValidationError, ValueError) as error:
        choices = _choices(hint)
        allowed = f"; allowed: {', '.join(choices)}" if choices else ""
        raise _wrong(source, name, f"{error}{allowed}") from error


def _check_text(name: str, value: object) -> None:
    key = name.rsplit(".", 1)[-1]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        if key in _SIZE_KEYS:
            _check_size(value)
        elif key in _DURATION_KEYS:
            _check_duration(key, value)
        elif key == "log_level" and value not in _LOG_LEVELS:
            raise ValueError(f"{value!r} is no log level; allowed: {', '.join(_LOG_LEVELS)}")
    elif isinstance(value, list) and key == "simulated":
        for entry in value:
            _check_size(entry.memory)


def _check_size(value: str | float) -> None:
    if parse_size(value if isinstance(value, str) else int(value)) < 0:
        raise ValueError("a size cannot be negative")


def _check_duration(key: str, value: str | float) -> None:
    seconds = parse_duration(value)
    if key in _NEVER_KEYS and seconds == -1:
        return
    least = 0.05 if key in {"heartbeat", "sample_interval"} else 0.0
    if not least <= seconds < _MOST_SECONDS:
        raise ValueError(f"{value!r} is out of range: use a duration of at least {least:g} seconds")


def _choices(hint: Any) -> list[str]:
    kinds = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    for kind in kinds:
        if kind is not NoneType and isinstance(kind, type) and issubclass(kind, StrEnum):
            return [member.value for member in kind]
    return []


def _wrong(source: str, key: str, problem: str) -> ConfigError:
    return ConfigError(f"{source}: {key}: {problem}.", hint="Correct it and start again.")


def _from_environment(environ: Mapping[str, str]) -> list[tuple[tuple[str, str], str]]:
    tables = get_type_hints(Settings)
    found = []
    for variable, text in environ.items():
        for table in tables:
            prefix = f"{_PREFIX}{table.upper()}_"
            if variable.startswith(prefix):
                found.append(((table, variable[len(prefix) :].lower()), text))
    return found
