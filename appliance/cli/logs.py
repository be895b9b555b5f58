"""logs: what an engine printed."""

import argparse

import msgspec

from appliance.cli.client import ServerClient
from appliance.cli.models import Subparsers
from appliance.cli.output import print_json, safe
from appliance.protocol.engines import LogWindow

_MOST_LINES = 10_000


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    logs = subparsers.add_parser("logs", help="print the log of a model's engine")
    logs.add_argument("engine", help="model, or id of an engine")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    logs.add_argument(
        "-n", "--lines", type=_count, default=100, help="how many of the newest lines"
    )
    logs.set_defaults(func=_logs)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return min(int(text), _MOST_LINES)


def _logs(args: argparse.Namespace) -> int:
    client = ServerClient(args.url)
    path = f"/admin/v1/engines/{args.engine}/logs"
    if not args.follow:
        window = client.get(path, LogWindow, tail=args.lines)
        if args.json:
            print_json(window)
        else:
            _print(window)
        return 0
    for data in client.events(path, tail=args.lines, follow=True):
        _print(msgspec.json.decode(data, type=LogWindow))
    return 0


def _print(window: LogWindow) -> None:
    if window.skipped:
        print(f"── {window.skipped} lines skipped ──")
    for line in window.lines:
        print(safe(line), flush=True)
