"""add and set: a model and its settings."""

import argparse
import sys
from pathlib import Path
from typing import Any

from appliance.cli.client import ServerClient
from appliance.cli.models import Subparsers, client_of
from appliance.cli.output import print_json, safe
from appliance.protocol.models import Model, ModelChange, ModelCreate, Task
from appliance.protocol.placement import PlanVerdict
from appliance.protocol.system import EngineEnvironment
from appliance.units import format_size, parse_duration, parse_size


def add_parsers(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    add = subparsers.add_parser("add", help="add a model from a directory of the server")
    add.add_argument("path", type=Path, help="directory with config.json and the weights")
    add.add_argument("--name", help="name that clients use; default: the directory's name")
    add.add_argument("--task", choices=[task.value for task in Task], help="default: found out")
    _add_settings(add)
    add.set_defaults(func=_add)
    change = subparsers.add_parser("set", help="change settings of a model")
    change.add_argument("model")
    _add_settings(change)
    change.set_defaults(func=_set)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    yes_no = argparse.BooleanOptionalAction
    parser.add_argument("--context", type=int, metavar="TOKENS", help="prompt and answer together")
    parser.add_argument("--always-on", action=yes_no, help="load at start, never unload")
    parser.add_argument("--pin", action=yes_no, help="never unload once it is loaded")
    parser.add_argument("--idle", metavar="DURATION", help="unload after this; `never` keeps it")
    parser.add_argument(
        "--tp",
        type=_tp_size,
        metavar="N",
        help="split over N devices; `auto`: as few as it fits",
    )
    parser.add_argument(
        "--device", action="append", help="index or id it may use; may repeat; `any` lifts it"
    )
    parser.add_argument(
        "--avoid", action="append", metavar="DEVICE", help="may not use it; `none` lifts it"
    )
    parser.add_argument("--exclusive", action=yes_no, help="share its devices with no other model")
    parser.add_argument(
        "--sleep", choices=["auto", "off", "1", "2"], help="what becomes of it when it is idle"
    )
    parser.add_argument("--kv-cache", metavar="SIZE", help="KV cache on each device, as 2GiB")
    parser.add_argument("--memory", metavar="SIZE", help="reserve this instead of the estimate")
    parser.add_argument("--max-sequences", type=int, metavar="N", help="requests at once")
    parser.add_argument("--dtype", help="auto, bfloat16, float16 or float32")
    parser.add_argument("--environment", help="engine environment; default: the one in use")
    parser.add_argument(
        "--arg", action="append", metavar="ARG", help="argument for vLLM, as --arg=--seed=1"
    )
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", help="for the engine")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by their names."""
    given = {
        "context_length": args.context,
        "always_on": args.always_on,
        "pinned": args.pin,
        "idle_timeout_s": parse_duration(args.idle) if args.idle else None,
        "tp_size": args.tp,
        "devices": _names(args.device, nothing="any"),
        "avoid_devices": _names(args.avoid, nothing="none"),
        "exclusive": args.exclusive,
        "kv_cache_bytes": parse_size(args.kv_cache) if args.kv_cache else None,
        "memory_bytes": parse_size(args.memory) if args.memory else None,
        "max_sequences": args.max_sequences,
        "dtype": args.dtype,
        "environment": args.environment,
        "sleep": int(args.sleep) if args.sleep in {"1", "2"} else args.sleep,
        "extra_args": args.arg,
        "env": dict(_variable(text) for text in args.env) if args.env else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _tp_size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _names(given: list[str] | None, *, nothing: str) -> list[str] | None:
    """Devices; the word for nothing takes back what was set before."""
    return [] if given == [nothing] else given


def _variable(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"{text!r} is no NAME=VALUE")
    return name, value


def _add(args: argparse.Namespace) -> int:
    path = args.path.expanduser().absolute()
    body = ModelCreate(
        id=args.name or path.name,
        path=str(path),
        task=Task(args.task) if args.task else None,
        **settings_of(args),
    )
    client = client_of(args)
    model = client.post("/admin/v1/models", Model, body)
    if args.json:
        print_json(model)
        return 0
    weights, need = format_size(model.weights_bytes), format_size(model.need_bytes)
    task = model.settings.task.value
    print(f"Added {safe(model.id)}: {task}, {weights} of weights, needs about {need}.")
    _warn(client, model)
    return 0


def _set(args: argparse.Namespace) -> int:
    changes = settings_of(args)
    if not changes:
        raise ValueError("nothing to change: `appliance set --help` lists the settings")
    client = client_of(args)
    model = client.patch(f"/admin/v1/models/{args.model}", Model, ModelChange(**changes))
    if args.json:
        print_json(model)
        return 0
    print(f"Changed {safe(model.id)}: {', '.join(changes)}.")
    if model.placement is not None:
        print("It is loaded; what concerns its engine counts from the next load.")
    _warn(client, model)
    return 0


def _warn(client: ServerClient, model: Model) -> None:
    """Say now what would fail at the first load."""
    plan = client.post(f"/admin/v1/models/{model.id}/plan", PlanVerdict)
    if plan.verdict == "refuse":
        why = f"{safe(plan.message)} {safe(plan.hint)}"
        print(f"As things are it cannot be loaded: {why}", file=sys.stderr)
    wanted = model.settings.environment
    names = [each.name for each in client.get("/admin/v1/engine-envs", list[EngineEnvironment])]
    if wanted is not None and wanted not in names:
        print(f"There is no engine environment {safe(wanted)} yet.", file=sys.stderr)
