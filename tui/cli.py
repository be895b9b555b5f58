"""Command line of the terminal UI."""

import argparse
import asyncio
import locale
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tui.client.api import Client, ClientError
from tui.client.target import Target, find_socket, require_server

_PLAIN_TERMINALS = frozenset({"dumb", ""})


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        target = _target(options, os.environ)
        key = read_key(options.key_file, os.environ)
        require_server(target)
        if options.json or options.once or not _is_screen(os.environ):
            return _print_once(target, key, as_json=options.json)
        return _run_app(options, target, key)
    except ClientError as error:
        print(f"appliance tui: {error.message}. {error.hint}".rstrip(), file=sys.stderr)
        return 1
    except OSError as error:
        print(f"appliance tui: {error}", file=sys.stderr)
        return 1


def read_key(key_file: str | None, environ: Mapping[str, str]) -> str | None:
    """The API key: from a file, else from APPLIANCE_API_KEY."""
    if key_file is not None:
        return Path(key_file).read_text(encoding="utf-8").strip() or None
    return environ.get("APPLIANCE_API_KEY", "").strip() or None


def needs_ascii(environ: Mapping[str, str], encoding: str) -> bool:
    """True where the terminal is not known to draw more than ASCII."""
    return encoding.lower().replace("-", "") != "utf8" or environ.get("TERM") == "linux"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appliance tui", description="Terminal UI of the vLLM Appliance."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help="management socket of the server")
    where.add_argument("--url", help="address of a server on another machine")
    parser.add_argument(
        "--key-file", metavar="FILE", help="file that holds the API key (or APPLIANCE_API_KEY)"
    )
    parser.add_argument("--readonly", action="store_true", help="look, change nothing")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    parser.add_argument("--once", action="store_true", help="print the state as text and exit")
    parser.add_argument("--json", action="store_true", help="print the state as JSON and exit")
    parser.add_argument("--theme", metavar="NAME", help="colours, for example ansi-dark")
    return parser


def _target(options: argparse.Namespace, environ: Mapping[str, str]) -> Target:
    if options.url:
        return Target(url=options.url)
    return Target(socket=options.socket or find_socket(environ))


def _is_screen(environ: Mapping[str, str]) -> bool:
    if environ.get("TERM", "") in _PLAIN_TERMINALS:
        return False
    return sys.stdin.isatty() and sys.stdout.isatty()


def make_client(target: Target, key: str | None) -> Client:
    """The way to the server."""
    # Imported late: the first frame is drawn before the HTTP library is read from disk.
    from tui.client.http import HttpClient

    return HttpClient(target, key)


def _print_once(target: Target, key: str | None, *, as_json: bool) -> int:
    from tui import once

    async def fetch() -> str:
        client = make_client(target, key)
        try:
            snapshot = await client.state()
        finally:
            await client.aclose()
        return once.as_json(snapshot) if as_json else once.plain(snapshot)

    print(asyncio.run(fetch()))
    return 0


def _run_app(options: argparse.Namespace, target: Target, key: str | None) -> int:
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    from tui.app import ApplianceApp
    from tui.client.session import Session
    from tui.theme import choose_theme, theme_names

    session = Session(
        make_client=lambda: make_client(target, key),
        target=str(target),
        readonly=options.readonly,
        ascii=options.ascii or needs_ascii(os.environ, locale.getpreferredencoding(False)),
    )
    theme = choose_theme(options.theme, os.environ)
    if theme not in theme_names():
        print(f"appliance tui: no theme {theme!r}. There are: {', '.join(theme_names())}.",
              file=sys.stderr)  # fmt: skip
        return 2
    app = ApplianceApp(session, theme=theme)
    app.run(mouse=not options.no_mouse)
    return app.return_code or 0
