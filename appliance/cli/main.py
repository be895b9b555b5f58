"""The `appliance` command."""

import argparse
import sys

from appliance import __version__
from appliance.cli import (
    add,
    devices,
    doctor,
    engine,
    estimate,
    keys,
    logs,
    models,
    pull,
    run,
    serve,
    sleep,
    starter,
)
from appliance.cli.batch import verbs as batch
from appliance.cli.output import print_json
from appliance.errors import ApplianceError
from appliance.protocol.system import ErrorBody, ErrorDetail


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    own, tui_words = _split_tui(words)
    parser = build_parser()
    args, extra = parser.parse_known_args(own, argparse.Namespace(json=False, url=None))
    if extra and args.command == "run" and not any(word.startswith("-") for word in extra):
        # The prompt may come after options.
        args.prompt += extra
    elif extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    args.arguments = tui_words
    try:
        return int(args.func(args))
    except ApplianceError as error:
        _tell_error(error, as_json=args.json)
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


def _split_tui(words: list[str]) -> tuple[list[str], list[str]]:
    """All that follows `tui` is for the terminal UI, which has options of its own."""
    if "tui" not in words:
        return words, []
    place = words.index("tui")
    before = words[:place]
    is_verb = all(word.startswith("-") for word in before) or before[0] == "--url"
    return (words[: place + 1], words[place + 1 :]) if is_verb else (words, [])


def _tell_error(error: ApplianceError, *, as_json: bool) -> None:
    if as_json:
        detail = ErrorDetail(code=error.code, message=error.message, hint=error.hint)
        print_json(ErrorBody(error=detail))
        return
    print(f"appliance: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"           {error.hint}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all verbs."""
    parser = argparse.ArgumentParser(
        prog="appliance",
        description="vLLM Appliance: engines on demand behind one OpenAI-compatible endpoint.",
    )
    parser.add_argument("--version", action="version", version=f"appliance {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve.add_parsers(subparsers)
    models.add_parsers(subparsers)
    sleep.add_parsers(subparsers)
    devices.add_parser(subparsers)
    doctor.add_parser(subparsers)
    add.add_parsers(subparsers)
    pull.add_parsers(subparsers)
    estimate.add_parser(subparsers)
    run.add_parser(subparsers)
    batch.add_parser(subparsers)
    logs.add_parser(subparsers)
    keys.add_parser(subparsers)
    engine.add_parser(subparsers)
    starter.add_parser(subparsers)
    _add_shared(parser)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--url` before or after any verb mean the same."""
    known = {option for action in parser._actions for option in action.option_strings}
    if "--json" not in known:
        parser.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
    if "--url" not in known:
        parser.add_argument(
            "--url",
            default=argparse.SUPPRESS,
            help="address of a server elsewhere; needs a key in APPLIANCE_API_KEY",
        )
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in set(action.choices.values()):
                _add_shared(child)
