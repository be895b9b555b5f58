"""ls, ps, show, add, load, stop, rm: the models and engines of a server."""

import argparse
import sys
import time
from datetime import UTC, datetime

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.devices import ailing_lines
from appliance.cli.estimate import need_text
from appliance.cli.output import print_json, print_table, safe
from appliance.cli.plan import plan_lines
from appliance.errors import join_sentences
from appliance.protocol.engines import Engine, EngineState
from appliance.protocol.models import Model
from appliance.protocol.placement import PlanVerdict
from appliance.protocol.sleep import SleepVerdict
from appliance.protocol.system import Snapshot
from appliance.units import format_duration, format_size

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


def client_of(args: argparse.Namespace) -> ServerClient:
    """The server that the arguments name."""
    return ServerClient(args.url)


def _ls(args: argparse.Namespace) -> int:
    models = client_of(args).get("/admin/v1/models", list[Model])
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
    client = client_of(args)
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
    state = client.get("/admin/v1/state", Snapshot)
    for line in ailing_lines(state.devices):
        print(f"\n{safe(line)}")
    for launcher in state.server.launchers:
        memory = f", {format_size(launcher.memory_bytes)}" if launcher.memory_bytes else ""
        problem = f": {launcher.problem}" if launcher.problem else ""
        print(f"\nwarm launcher {launcher.environment}: {launcher.state}{memory}{problem}")
    return 0


def _show(args: argparse.Namespace) -> int:
    model = client_of(args).get(f"/admin/v1/models/{args.model}", Model)
    if args.json:
        print_json(model)
        return 0
    rows = {
        "name": model.id,
        "state": state_text(model),
        "task": model.settings.task.value,
        "architecture": model.architecture,
        "directory": model.settings.path,
        "context": f"{model.context_length} tokens",
        "weights": format_size(model.weights_bytes),
        "needs": f"{_need(model)} on each device",
        "devices": _devices(model),
        "tensor parallel": str(model.settings.tp_size),
        "keep": _keep(model),
        "unloads": _until(model),
        "dtype": model.settings.dtype,
        "environment": model.settings.environment or "the one in use",
        "arguments": " ".join(model.settings.extra_args) or "-",
        "variables": " ".join(f"{key}={value}" for key, value in model.settings.env.items()) or "-",
        "sleep": "; ".join(_verdict(verdict) for verdict in model.sleep)
        or f"{model.settings.sleep}, not tried yet",
        "requests": str(model.requests_total),
    }
    if model.failure is not None:
        rows["failure"] = model.failure.message
        rows["what to do"] = model.failure.hint
    if model.first_failure is not None:
        first = model.first_failure
        rows["failed first"] = first.message
        if first.engine_id is not None:
            rows["its log"] = f"appliance logs {first.engine_id}"
    for name, value in rows.items():
        print(f"{name:<17}{safe(value)}")
    return 0


def _load(args: argparse.Namespace) -> int:
    client = client_of(args)
    if args.dry_run:
        plan = client.post(f"/admin/v1/models/{args.model}/plan", PlanVerdict)
        if args.json:
            print_json(plan)
        else:
            print("\n".join(plan_lines(plan)))
        return 1 if plan.verdict == "refuse" else 0
    model = client.post(f"/admin/v1/models/{args.model}/load", Model)
    shown = ""
    while not args.no_wait and model.state is not EngineState.READY:
        if model.failure is not None and model.state is EngineState.FAILED:
            failure = model.failure
            log = f"`appliance logs {model.id}` shows its log."
            about = "" if failure.message.startswith(model.id) else f"{model.id}: "
            raise ServerError(
                f"Not loaded. {about}{failure.message}",
                hint=join_sentences(failure.hint, log if failure.last_lines else ""),
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
    client = client_of(args)
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
    client = client_of(args)
    model = client.get(f"/admin/v1/models/{args.model}", Model)
    client.delete(f"/admin/v1/models/{args.model}")
    print(f"Forgot {safe(model.id)}; its files stay in {safe(model.settings.path)}.")
    return 0


def _verdict(verdict: SleepVerdict) -> str:
    """What was found out about a sleep level."""
    if not verdict.works:
        return f"level {verdict.level} does not work: {verdict.reason}"
    seconds = [
        f"{word} {format_duration(value)}"
        for word, value in (("sleeps in", verdict.sleep_s), ("wakes in", verdict.wake_s))
        if value is not None
    ]
    freed, stay = format_size(verdict.freed_bytes), format_size(verdict.residue_bytes)
    return f"level {verdict.level} works: {freed} freed, {stay} stay, {', '.join(seconds)}"


def _need(model: Model) -> str:
    return need_text(model.need) if model.need else f"about {format_size(model.need_bytes)}"


def _devices(model: Model) -> str:
    settings = model.settings
    text = ", ".join(settings.devices) or "any"
    if settings.avoid_devices:
        text += f", but not {', '.join(settings.avoid_devices)}"
    return f"{text}; shared with no other model" if settings.exclusive else text


def _keep(model: Model) -> str:
    if model.settings.always_on:
        return "always on"
    return "pinned" if model.settings.pinned else "-"


def state_text(model: Model) -> str:
    """State, progress and reason in a few words."""
    text = model.state.value
    if model.sleep_level is not None:
        text += f" (level {model.sleep_level})"
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
