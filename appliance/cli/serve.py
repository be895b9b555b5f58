"""serve and tui: the two programs that stay."""

import argparse
import os
import sys

from appliance.cli.models import Subparsers
from appliance.config.load import load_settings
from appliance.config.paths import find_paths


def add_parsers(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    serve = subparsers.add_parser("serve", help="run the server in the foreground")
    serve.add_argument("--host", help="address for clients (default 127.0.0.1)")
    serve.add_argument("--port", help="port for clients (default 8000)")
    serve.add_argument("--log-level", help="debug, info, warning or error")
    serve.set_defaults(func=_serve)
    tui = subparsers.add_parser("tui", help="open the terminal UI", add_help=False)
    tui.set_defaults(func=_tui)


def _serve(args: argparse.Namespace) -> int:
    # Imported here: the client verbs do without the web framework and start quicker.
    from appliance.server.run import run

    paths = find_paths()
    flags = {
        "server.host": args.host,
        "server.port": args.port,
        "server.log_level": args.log_level,
    }
    run(load_settings(paths.config_file, flags=flags), paths)
    return 0


def _tui(args: argparse.Namespace) -> int:
    """Replace this process: server and terminal UI share the wire format and nothing else."""
    arguments = list(args.arguments)
    if args.url:
        arguments = ["--url", args.url, *arguments]
    elif not any(each.startswith(("--url", "--socket")) for each in arguments):
        arguments = ["--socket", str(find_paths().admin_socket), *arguments]
    os.execv(sys.executable, [sys.executable, "-m", "tui", *arguments])  # noqa: S606
