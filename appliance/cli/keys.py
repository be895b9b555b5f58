"""keys: API keys of a server."""

import argparse

from appliance.cli.client import ServerClient
from appliance.cli.models import Subparsers
from appliance.cli.output import print_json, print_table
from appliance.protocol.keys import Key, KeyCreate, NewKey


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    keys = subparsers.add_parser("keys", help="API keys")
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("ls", help="list the keys").set_defaults(func=_ls)
    create = verbs.add_parser("create", help="make a key; it is shown once")
    create.add_argument("name", help="who or what uses it")
    create.add_argument("--scope", choices=["infer", "admin"], default="infer")
    create.set_defaults(func=_create)
    revoke = verbs.add_parser("rm", help="make a key worthless at once")
    revoke.add_argument("id")
    revoke.set_defaults(func=_rm)


def _ls(args: argparse.Namespace) -> int:
    keys = ServerClient(args.url).get("/admin/v1/keys", list[Key])
    if args.json:
        print_json(keys)
        return 0
    rows = [
        [key.id, key.name, f"{key.prefix}…", key.scope, f"{key.created_at:%Y-%m-%d}"]
        for key in keys
    ]
    print_table(["ID", "NAME", "KEY", "SCOPE", "CREATED"], rows)
    return 0


def _create(args: argparse.Namespace) -> int:
    body = KeyCreate(name=args.name, scope=args.scope)
    made = ServerClient(args.url).post("/admin/v1/keys", NewKey, body)
    if args.json:
        print_json(made)
    else:
        print(made.secret)
    return 0


def _rm(args: argparse.Namespace) -> int:
    ServerClient(args.url).delete(f"/admin/v1/keys/{args.id}")
    print(f"Revoked {args.id}.")
    return 0
