"""pull and pulls: checkpoints from a hub, fetched by the server."""

import argparse
import sys
from datetime import UTC, datetime
from urllib.parse import quote

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.models import Subparsers, client_of
from appliance.cli.output import print_json, print_table, safe
from appliance.cli.pull_watch import JsonLines, Lines, Show, follow
from appliance.hub.names import parse_source
from appliance.protocol.pulls import Pull, PullCreate, PullState
from appliance.units import format_duration, format_size

_PULLS = "/admin/v1/pulls"
_INTERRUPTED = 130
_ACTIONS = ("ls", "show", "pause", "resume", "cancel")


def add_parsers(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    pull = subparsers.add_parser(
        "pull",
        help="fetch a model from Hugging Face and add it",
        description="Fetch a model from Hugging Face's hub and add it. The server does it: Ctrl+C"
        " only ends the display, and the same command shows it again.",
        epilog="example: appliance pull Qwen/Qwen2.5-0.5B-Instruct",
    )
    pull.add_argument(
        "source", metavar="ORG/NAME[@REVISION]", help="repository, or the address of its page"
    )
    pull.add_argument("--name", help="name that clients use; default: ORG/NAME")
    pull.add_argument("--no-wait", action="store_true", help="return at once")
    pull.set_defaults(func=_pull)
    pulls = subparsers.add_parser(
        "pulls",
        help="list the pulls; pause, resume or cancel one",
        description="List the pulls, or act on one: `cancel` deletes what was fetched.",
    )
    pulls.add_argument("action", nargs="?", choices=_ACTIONS, default="ls")
    pulls.add_argument("pull", nargs="?", help="its id or its repository")
    pulls.set_defaults(func=_pulls)


def _pull(args: argparse.Namespace) -> int:
    repo, revision = parse_source(args.source)
    client = client_of(args)
    body = PullCreate(repo=repo, revision=revision, name=args.name)
    last = client.post(_PULLS, Pull, body)
    show: Show = JsonLines() if args.json else Lines()
    if args.no_wait:
        show.changed(last)
        return 0
    try:
        for pull in follow(client, last.id, say=show.say):
            last = pull
            show.changed(pull)
            if not pull.state.is_active:
                break
    except KeyboardInterrupt:
        show.say(
            f"The server goes on with it. `appliance pull {args.source}` shows it again,"
            f" `appliance pulls pause {last.id}` or `cancel` stops it."
        )
        return _INTERRUPTED
    return _ended(last, as_json=args.json)


def _ended(pull: Pull, *, as_json: bool) -> int:
    if pull.state is PullState.COMPLETED:
        if not as_json:
            size = format_size(pull.total_bytes)
            print(f"Pulled {safe(pull.model)}: {size} in {safe(pull.path or '')}")
        return 0
    if not as_json:
        if pull.problem is not None:
            print(f"appliance: {safe(pull.problem.message)}", file=sys.stderr)
            print(f"           {safe(pull.problem.hint)}", file=sys.stderr)
            print("           The same command resumes it from what is there.", file=sys.stderr)
        else:
            # Somebody else did it.
            print(f"appliance: The pull {pull.id} is {pull.state}.", file=sys.stderr)
    return 1


def _pulls(args: argparse.Namespace) -> int:
    client = client_of(args)
    if args.action == "ls":
        if args.pull is not None:
            raise ValueError("`appliance pulls ls` takes no pull; `show` shows one")
        return _ls(client, as_json=args.json)
    if args.pull is None:
        raise ValueError(f"which pull? `appliance pulls {args.action} ID`")
    pull = find_pull(client, args.pull)
    if args.action != "show":
        pull = client.post(f"{_path_of(pull.id)}/{args.action}", Pull)
    if args.json:
        print_json(pull)
    else:
        _show(pull)
    return 0


def find_pull(client: ServerClient, given: str) -> Pull:
    """By its id, or the newest of a repository, an open one first. Raises ServerError."""
    pulls = client.get(_PULLS, list[Pull])
    repo = parse_source(given)[0]
    found = [pull for pull in pulls if pull.id == given or repo in {pull.repo, pull.model}]
    if not found:
        raise ServerError(f"There is no pull {given!r}.", hint="`appliance pulls` lists them.")
    return max(found, key=lambda pull: (not pull.state.is_final, pull.created_at))


def _path_of(pull_id: str) -> str:
    return f"{_PULLS}/{quote(pull_id, safe='')}"


def _ls(client: ServerClient, *, as_json: bool) -> int:
    pulls = client.get(_PULLS, list[Pull])
    if as_json:
        print_json(pulls)
        return 0
    rows = [
        [
            pull.id,
            f"{pull.repo}@{pull.revision}" if pull.revision else pull.repo,
            pull.phase.value if pull.phase else pull.state.value,
            format_size(pull.done_bytes) if pull.total_bytes else "-",
            format_size(pull.total_bytes) if pull.total_bytes else "-",
            f"{format_size(pull.rate_bytes_per_s)}/s" if pull.rate_bytes_per_s else "-",
            format_duration(pull.eta_s) if pull.eta_s is not None else "-",
        ]
        for pull in pulls
    ]
    print_table(["ID", "REPOSITORY", "STATE", "DONE", "SIZE", "RATE", "LEFT"], rows)
    for pull in pulls:
        if pull.problem is not None:
            print(f"\n{pull.id}: {safe(pull.problem.message)}\n  {safe(pull.problem.hint)}")
    return 0


def _show(pull: Pull) -> None:
    rows = {
        "id": pull.id,
        "repository": pull.repo,
        "revision": pull.revision or "-",
        "commit": pull.commit or "-",
        "model": pull.model,
        "state": f"{pull.state} ({pull.phase})" if pull.phase else pull.state.value,
        "done": f"{format_size(pull.done_bytes)} of {format_size(pull.total_bytes)}",
        "files": f"{pull.files_done} of {pull.files_total} verified",
        "directory": pull.path or "-",
    }
    if pull.problem is not None:
        rows |= {"problem": pull.problem.message, "what to do": pull.problem.hint}
    if pull.retry_at is not None:
        left = (pull.retry_at - datetime.now(UTC)).total_seconds()
        rows["next try"] = f"in {format_duration(max(0.0, left))}"
    for name, text in rows.items():
        print(f"{name:<12}{safe(text)}")
