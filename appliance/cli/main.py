"""The `appliance` command."""

import argparse
import sys

from appliance import __version__
from appliance.cli import engine, keys, logs, models, run, serve, starter
from appliance.errors import ApplianceError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(argv, argparse.Namespace(json=False))
    try:
        return int(args.func(args))
    except ApplianceError as error:
        print(f"appliance: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"           {error.hint}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"appliance: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say.
        sys.stderr.close()
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser with all verbs."""
    parser = argparse.ArgumentParser(
        prog="appliance",
        description="vLLM Appliance: engines on demand behind one OpenAI-compatible endpoint.",
    )
    parser.add_argument("--version", action="version", version=f"appliance {__version__}")
    parser.add_argument("--url", help="address of a server elsewhere; needs APPLIANCE_API_KEY")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve.add_parsers(subparsers)
    models.add_parsers(subparsers)
    run.add_parser(subparsers)
    logs.add_parser(subparsers)
    keys.add_parser(subparsers)
    engine.add_parser(subparsers)
    starter.add_parser(subparsers)
    _add_json(parser)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    """`--json` before or after any verb means the same."""
    if not any("--json" in action.option_strings for action in parser._actions):
        parser.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in set(action.choices.values()):
                _add_json(child)
