"""logs: what an engine printed."""

import argparse

import msgspec

from appliance.cli.client import ServerClient
from appliance.cli.models import Subparsers
from appliance.cli.output import print_json, safe
from appliance.protocol.engines import LogLevel, LogMatches, LogWindow

_MOST_LINES = 10_000


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    logs = subparsers.add_parser("logs", help="print the log of a model's engine")
    logs.add_argument("engine", help="model, or id of an engine")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    logs.add_argument(
        "-n", "--lines", type=_count, default=100, help="how many of the newest lines"
    )
    logs.add_argument(
        "--grep", metavar="TEXT", default="", help="only lines with this text, in any case"
    )
    logs.add_argument(
        "--level", choices=[*LogLevel], help="only warnings and errors, or only errors"
    )
    logs.set_defaults(func=_logs)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return min(int(text), _MOST_LINES)


def _logs(args: argparse.Namespace) -> int:
    client = ServerClient(args.url)
    path = f"/admin/v1/engines/{args.engine}/logs"
    if args.grep or args.level:
        keep = {"grep": args.grep} if args.grep else {}
        keep |= {"level": args.level} if args.level else {}
        return _matches(client, path, args, keep)
    if not args.follow:
        window = client.get(path, LogWindow, tail=args.lines)
        if args.json:
            print_json(window)
        else:
            _print(window.lines, window.skipped)
        return 0
    for data in client.events(path, tail=args.lines, follow=True):
        window = msgspec.json.decode(data, type=LogWindow)
        _print(window.lines, window.skipped)
    return 0


def _matches(
    client: ServerClient, path: str, args: argparse.Namespace, keep: dict[str, str]
) -> int:
    found = newest_matches(client, path, args.lines, keep)
    if args.json and not args.follow:
        print_json(found)
        return 0
    _print([match.text for match in found.matches])
    if not args.follow:
        return 0
    query = {"from": found.scanned_to, "follow": True, **keep}
    for data in client.events(path, **query):
        more = msgspec.json.decode(data, type=LogMatches)
        # Only what the stream has lost: lines that are no longer kept are no news here.
        _print([match.text for match in more.matches], more.skipped)
    return 0


def newest_matches(client: ServerClient, path: str, count: int, keep: dict[str, str]) -> LogMatches:
    """The last `count` matches of the whole log; the server looks at a part in each call."""
    found = client.get(path, LogMatches, tail=count, **keep)
    while len(found.matches) < count and not found.is_complete:
        older = client.get(
            path,
            LogMatches,
            tail=count - len(found.matches),
            before=found.scanned_from,
            **keep,
        )
        found = msgspec.structs.replace(
            older,
            matches=older.matches + found.matches,
            scanned_to=found.scanned_to,
            skipped=older.skipped + found.skipped,
        )
    return found


def _print(lines: list[str], skipped: int = 0) -> None:
    if skipped:
        print(f"── {skipped} lines skipped ──")
    for line in lines:
        print(safe(line), flush=True)
