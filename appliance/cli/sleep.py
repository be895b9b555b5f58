"""sleep and wake: the tier between ready and unloaded."""

import argparse
import time

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.models import Subparsers, client_of, state_text, tell
from appliance.cli.output import print_json, safe
from appliance.protocol.engines import EngineState
from appliance.protocol.models import Model
from appliance.units import format_duration, format_size

_POLL_S = 0.1
_ENDED = {EngineState.STOPPED, EngineState.FAILED}


def add_parsers(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    sleep = subparsers.add_parser("sleep", help="put a model to sleep: its device memory is free")
    sleep.add_argument("model")
    sleep.add_argument(
        "--level", type=int, choices=[1, 2], help="1 keeps the weights in RAM, 2 does not"
    )
    sleep.add_argument("--no-wait", action="store_true", help="return at once")
    sleep.set_defaults(func=_sleep)
    wake = subparsers.add_parser("wake", help="wake a model that sleeps")
    wake.add_argument("model")
    wake.add_argument("--no-wait", action="store_true", help="return at once")
    wake.set_defaults(func=_wake)


def _sleep(args: argparse.Namespace) -> int:
    client = client_of(args)
    started = time.monotonic()
    query = f"?level={args.level}" if args.level else ""
    model = client.post(f"/admin/v1/models/{args.model}/sleep{query}", Model)
    held = model.memory_bytes
    if not args.no_wait:
        model = _wait(client, model, EngineState.ASLEEP, quiet=args.json)
    if args.json:
        print_json(model)
    elif model.state is EngineState.ASLEEP:
        freed = format_size(max(held - model.memory_bytes, 0))
        print(f"{safe(model.id)} is asleep at level {model.sleep_level}: {freed} given back,"
              f" {format_size(model.memory_bytes)} stay,"
              f" in {format_duration(time.monotonic() - started)}.")  # fmt: skip
    return 0


def _wake(args: argparse.Namespace) -> int:
    client = client_of(args)
    started = time.monotonic()
    model = client.post(f"/admin/v1/models/{args.model}/wake", Model)
    if not args.no_wait:
        model = _wait(client, model, EngineState.READY, quiet=args.json)
    if args.json:
        print_json(model)
    elif model.state is EngineState.READY:
        print(f"{safe(model.id)} is awake after {format_duration(time.monotonic() - started)}.")
    return 0


def _wait(client: ServerClient, model: Model, goal: EngineState, *, quiet: bool) -> Model:
    """Until it is there. Raises ServerError if it was unloaded instead."""
    shown = ""
    while model.state is not goal:
        if model.state in _ENDED:
            failed = [verdict for verdict in model.sleep if not verdict.works]
            newest = max(failed, key=lambda verdict: verdict.at, default=None)
            why = newest.reason if newest else model.failure.message if model.failure else ""
            raise ServerError(f"{model.id} was unloaded instead. {why}".strip())
        shown = tell(state_text(model), shown, quiet=quiet)
        time.sleep(_POLL_S)
        model = client.get(f"/admin/v1/models/{model.id}", Model)
    return model
