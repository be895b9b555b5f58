"""ls, ps, show, add, load, stop, rm: the models and engines of a server."""

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.output import print_json, print_table, safe
from appliance.protocol.engines import Engine, EngineState
from appliance.protocol.models import Model, ModelCreate, Task
from appliance.protocol.placement import PlanVerdict
from appliance.units import format_duration, format_size, parse_duration, parse_size

_ENDED = {EngineState.STOPPED, EngineState.FAILED}
_POLL_S = 0.5

Subparsers = argparse._SubParsersAction


def add_parsers(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    listing = subparsers.add_parser("ls", aliases=["list"], help="list all models")
    listing.set_defaults(func=_ls)
    running = subparsers.add_parser("ps", help="list the engines that run")
    running.set_defaults(func=_ps)
    show = subparsers.add_parser("show", help="show one model in full")
    show.add_argument("model")
    show.set_defaults(func=_show)
    _add_add(subparsers)
    load = subparsers.add_parser("load", help="load a model now and wait until it is ready")
    load.add_argument("model")
    load.add_argument("--no-wait", action="store_true", help="return at once")
    load.add_argument("--dry-run", action="store_true", help="only say what would happen")
    load.set_defaults(func=_load)
    stop = subparsers.add_parser("stop", aliases=["unload"], help="unload a model")
    stop.add_argument("model")
    stop.add_argument("--no-wait", action="store_true", help="return at once")
    stop.set_defaults(func=_stop)
    remove = subparsers.add_parser("rm", help="forget a model; its files stay")
    remove.add_argument("model")
    remove.set_defaults(func=_rm)


def _add_add(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    add = subparsers.add_parser("add", help="add a model from a directory of the server")
    add.add_argument("path", type=Path)
    add.add_argument("--name", help="name that clients use; default: the directory's name")
    add.add_argument("--task", choices=[task.value for task in Task])
    add.add_argument("--context", type=int, metavar="TOKENS")
    add.add_argument("--always-on", action="store_true", help="load at start, never unload")
    add.add_argument("--pin", action="store_true", help="never unload once it is loaded")
    add.add_argument("--idle", metavar="DURATION", help="unload after this, `never` to keep it")
    add.add_argument("--tp", type=int, default=1, help="split over this many devices")
    add.add_argument("--device", action="append", default=[], help="index or id; may repeat")
    add.add_argument("--kv-cache", metavar="SIZE", help="KV cache on each device, as 2GiB")
    add.add_argument("--environment", help="engine environment; default: the one in use")
    add.set_defaults(func=_add)


def _client(args: argparse.Namespace) -> ServerClient:
    return ServerClient(args.url)


def _ls(args: argparse.Namespace) -> int:
    models = _client(args).get("/admin/v1/models", list[Model])
    if args.json:
        print_json(models)
        return 0
    rows = [
        [
            model.id,
            model.settings.task.value,
            format_size(model.weights_bytes),
            str(model.context_length),
            _keep(model),
            state_text(model),
        ]
        for model in models
    ]
    print_table(["NAME", "TASK", "WEIGHTS", "CONTEXT", "KEEP", "STATE"], rows)
    return 0


def _ps(args: argparse.Namespace) -> int:
    client = _client(args)
    models = {model.id: model for model in client.get("/admin/v1/models", list[Model])}
    engines = [
        engine
        for engine in client.get("/admin/v1/engines", list[Engine])
        if engine.state not in _ENDED
    ]
    if args.json:
        print_json(engines)
        return 0
    rows = []
    for engine in engines:
        model = models.get(engine.model)
        shares = engine.placement.shares if engine.placement else []
        rows.append(
            [
                engine.model,
                state_text(model) if model else engine.state.value,
                ",".join(str(share.device_index) for share in shares) or "-",
                format_size(engine.memory_bytes) if engine.memory_bytes else "-",
                str(model.in_flight) if model else "-",
                str(model.waiting) if model else "-",
                _until(model),
            ]
        )
    print_table(["NAME", "STATE", "DEVICE", "MEMORY", "RUNNING", "WAITING", "UNLOADS"], rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    model = _client(args).get(f"/admin/v1/models/{args.model}", Model)
    if args.json:
        print_json(model)
        return 0
    for name, value in msgspec.to_builtins(model).items():
        if name == "settings":
            for key, setting in value.items():
                print(f"  {key:<18}{safe(str(setting))}")
        else:
            print(f"{name:<20}{safe(str(value))}")
    return 0


def _add(args: argparse.Namespace) -> int:
    path = args.path.expanduser().absolute()
    body = ModelCreate(
        id=args.name or path.name,
        path=str(path),
        task=Task(args.task) if args.task else None,
        context_length=args.context,
        always_on=args.always_on,
        pinned=args.pin,
        idle_timeout_s=parse_duration(args.idle) if args.idle else None,
        tp_size=args.tp,
        devices=args.device,
        environment=args.environment,
        kv_cache_bytes=parse_size(args.kv_cache) if args.kv_cache else None,
    )
    model = _client(args).post("/admin/v1/models", Model, body)
    if args.json:
        print_json(model)
    else:
        print(f"Added {safe(model.id)}: {model.settings.task.value},"
              f" {format_size(model.weights_bytes)} of weights,"
              f" needs about {format_size(model.need_bytes)}.")  # fmt: skip
    return 0


def _load(args: argparse.Namespace) -> int:
    client = _client(args)
    if args.dry_run:
        plan = client.post(f"/admin/v1/models/{args.model}/plan", PlanVerdict)
        if args.json:
            print_json(plan)
        else:
            print(safe(plan.message))
        return 1 if plan.verdict == "refuse" else 0
    model = client.post(f"/admin/v1/models/{args.model}/load", Model)
    shown = ""
    while not args.no_wait and model.state is not EngineState.READY:
        if model.failure is not None and model.state is EngineState.FAILED:
            raise ServerError(
                f"{model.id} could not be loaded: {model.failure.message}",
                hint=f"{model.failure.hint} `appliance logs {model.id}` shows its log.",
            )
        shown = tell(state_text(model), shown, quiet=args.json)
        time.sleep(_POLL_S)
        model = client.get(f"/admin/v1/models/{args.model}", Model)
    if args.json:
        print_json(model)
    else:
        tell(state_text(model), shown, quiet=False)
        print(file=sys.stderr)
    return 0


def _stop(args: argparse.Namespace) -> int:
    client = _client(args)
    started = time.monotonic()
    model = client.post(f"/admin/v1/models/{args.model}/unload", Model)
    held = model.memory_bytes
    while not args.no_wait and model.state not in _ENDED:
        time.sleep(0.1)
        model = client.get(f"/admin/v1/models/{args.model}", Model)
    if args.json:
        print_json(model)
    elif held:
        print(f"{safe(model.id)} is unloaded: {format_size(held)} given back"
              f" in {format_duration(time.monotonic() - started)}.")  # fmt: skip
    else:
        print(f"{safe(model.id)} is unloaded.")
    return 0


def _rm(args: argparse.Namespace) -> int:
    client = _client(args)
    model = client.get(f"/admin/v1/models/{args.model}", Model)
    client.delete(f"/admin/v1/models/{args.model}")
    print(f"Forgot {safe(model.id)}; its files stay in {safe(model.settings.path)}.")
    return 0


def _keep(model: Model) -> str:
    if model.settings.always_on:
        return "always on"
    return "pinned" if model.settings.pinned else "-"


def state_text(model: Model) -> str:
    """State, progress and reason in a few words."""
    text = model.state.value
    if model.progress is not None and model.progress.ratio is not None:
        text += f" {model.progress.ratio:.0%} ({model.progress.phase.value})"
        if model.progress.eta_s is not None:
            text += f", {format_duration(model.progress.eta_s)} left"
    elif model.waits_for:
        text += f": {model.waits_for}"
    elif model.state is EngineState.FAILED and model.failure is not None:
        text += f": {model.failure.message}"
    return text


def _until(model: Model | None) -> str:
    if model is None or model.idle_unload_at is None:
        return "-"
    return (
        f"in {format_duration(max((model.idle_unload_at - datetime.now(UTC)).total_seconds(), 0))}"
    )


def tell(text: str, before: str, *, quiet: bool) -> str:
    """Progress on one line of a terminal, or a line for each change elsewhere."""
    if quiet or text == before:
        return text
    if sys.stderr.isatty():
        print(f"\r\x1b[K{safe(text)}", end="", file=sys.stderr, flush=True)
    else:
        print(safe(text), file=sys.stderr, flush=True)
    return text
