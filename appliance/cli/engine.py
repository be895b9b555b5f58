"""`appliance engine`: install, list, check, choose and remove engine environments.

Needs no server.
"""

import argparse
import signal
import sys
from collections.abc import Callable

import msgspec

from appliance.cli.output import print_json
from appliance.config.paths import find_paths
from appliance.engine.environments import EnvironmentRecord, EnvironmentStore
from appliance.engine.installer import DEFAULT_NAMES, check, install
from appliance.engine.pip_run import Report
from appliance.engine.warm_check import describe, is_prepared
from appliance.protocol.system import WarmOutcome
from appliance.units import format_size


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb and its own verbs."""
    parser = subparsers.add_parser("engine", help="engine environments: builds of vLLM")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_install(verbs)
    listing = verbs.add_parser("list", help="list the environments")
    listing.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")
    listing.set_defaults(func=_list)
    checking = verbs.add_parser(
        "check",
        help="check warm starts of an environment again",
        description="Start a tiny model in the plain way and forked from a process that has "
        "imported vLLM. Engines are forked only if the answers are identical; if not, the exit "
        "status is 1. Takes a minute.",
    )
    checking.add_argument("name", nargs="?", metavar="NAME", help="default: the one in use")
    checking.set_defaults(func=_check)
    for name, help_text, function in (
        ("use", "choose the environment of models that name none", _use),
        ("remove", "delete an environment", _remove),
    ):
        verb = verbs.add_parser(name, help=help_text)
        verb.add_argument("name", metavar="NAME")
        if name == "remove":
            verb.add_argument("--force", action="store_true", help="also the one in use")
        verb.set_defaults(func=function)


def _add_install(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "install",
        help="install vLLM into an environment of its own, or go on with it",
        description="Install vLLM. Without --cpu or --cuda: for CUDA where there is an NVIDIA "
        "driver, else for the CPU. An interrupted installation goes on.",
    )
    default = " or ".join(DEFAULT_NAMES.values())
    verb.add_argument("name", nargs="?", metavar="NAME", help=f"default: {default}")
    platform = verb.add_mutually_exclusive_group()
    for choice, text in (("cpu", "for machines without a GPU"), ("cuda", "for NVIDIA GPUs")):
        platform.add_argument(
            f"--{choice}", dest="platform", action="store_const", const=choice, help=text
        )
    verb.add_argument(
        "--if-missing", action="store_true", help="do nothing if an environment is in use"
    )
    verb.add_argument(
        "--no-check", action="store_true", help="do not check warm starts: starts stay plain"
    )
    verb.set_defaults(func=_install, platform="auto")


def _store() -> EnvironmentStore:
    return EnvironmentStore(find_paths().engine_environments)


def _install(args: argparse.Namespace) -> int:
    store, cache, report = _store(), find_paths().cache, _reporter(args)
    if args.if_missing and any(record.name == store.in_use() for record in store.records()):
        record = store.get()
        report(f"{record.name} is in use: vLLM {record.vllm_version}")
        if args.no_check or is_prepared(record, cache):
            return _run(args, lambda: record)
        return _run(args, lambda: check(store, record.name, cache=cache, report=report))
    return _run(
        args,
        lambda: install(
            store,
            platform=args.platform,
            name=args.name,
            cache=None if args.no_check else cache,
            report=report,
        ),
    )


def _check(args: argparse.Namespace) -> int:
    store, cache, report = _store(), find_paths().cache, _reporter(args)
    status = _run(args, lambda: check(store, args.name, cache=cache, again=True, report=report))
    view = store.view(store.get(args.name))
    is_same = view.warm_start is not None and view.warm_start.outcome is WarmOutcome.SAME
    return status or int(not is_same)


def _run(args: argparse.Namespace, work: Callable[[], EnvironmentRecord]) -> int:
    # So that pip and engines end with us when a service manager or `kill` ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        record = work()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    if args.json:
        print_json(_store().view(record))
    return 0


def _list(args: argparse.Namespace) -> int:
    store = _store()
    views = [store.view(record) for record in store.records()]
    if getattr(args, "json", False):
        print(msgspec.json.encode(views).decode())
        return 0
    if not views:
        print("No engine environment is installed. Install one: appliance engine install")
    for view in views:
        mark = "*" if view.in_use else " "
        print(
            f"{mark} {view.name:<20} vLLM {view.vllm_version:<10} {view.platform:<5} "
            f"Python {view.python_version:<8} {format_size(view.size_bytes):>9}  "
            f"{describe(view.warm_start)}"
        )
    for name in store.unfinished():
        print(f"  {name:<20} not complete; go on: appliance engine install {name}")
    return 0


def _use(args: argparse.Namespace) -> int:
    record = _store().use(args.name)
    print(f"Models that name no environment now get {record.name}; loaded ones stay as they are.")
    return 0


def _remove(args: argparse.Namespace) -> int:
    _store().remove(args.name, force=args.force)
    print(f"Removed {args.name}.")
    return 0


def _reporter(args: argparse.Namespace) -> Report:
    """Prints progress, out of the way of JSON."""

    def report(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    return report
