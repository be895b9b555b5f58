"""The verbs of `appliance batch`, and those that look at batches or hold them."""

import argparse
from pathlib import Path

from appliance.batch.lines import ENDPOINTS
from appliance.cli.batch import compare, results, submit, watch
from appliance.cli.batch.find import (
    done_text,
    ended_at,
    eta_text,
    find_batch,
    models_text,
    path_of,
    rate_text,
    short,
    state_text,
    time_text,
)
from appliance.cli.models import Subparsers, client_of
from appliance.cli.output import print_json, print_table, safe
from appliance.protocol.batches import BatchProgress, LineFailure
from appliance.units import format_duration

_PAGE = 100
_MOST_SHOWN = 20


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb and its own verbs."""
    parser = subparsers.add_parser("batch", help="files of requests, answered in the background")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_input_verbs(verbs)
    listing = verbs.add_parser("ls", aliases=["list"], help="list the batches, newest first")
    listing.add_argument("-n", type=_count, default=20, metavar="N", help="how many (20)")
    listing.set_defaults(func=_ls)
    for name, text, function in (
        ("show", "show one batch in full, and why lines failed", _show),
        ("pause", "start no further lines until it is resumed", _pause),
        ("resume", "go on with a paused batch", _resume),
        ("cancel", "end a batch; what has answers keeps them", _cancel),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("id", help="its id, or the beginning of it")
        verb.set_defaults(func=function)
    watching = verbs.add_parser(
        "watch",
        help="follow batches until they are over",
        description="Follow batches until they are over, through restarts of the server. The exit"
        " status is 0 if every line was answered. --json prints a line for each change.",
    )
    watching.add_argument("ids", nargs="+", metavar="ID", help="id, or the beginning of one")
    watching.set_defaults(func=watch.run)
    _add_result_verbs(verbs)


def _add_input_verbs(verbs: "Subparsers[argparse.ArgumentParser]") -> None:
    submitting = verbs.add_parser(
        "submit",
        help="check a file, upload it and start its batch",
        description="Check a file of requests line by line, upload it and start its batch."
        " With several --model one batch for each: the same requests, for comparison. Prints ids.",
    )
    validating = verbs.add_parser(
        "validate",
        help="check a file of requests line by line; uploads nothing",
        description="Check a file of requests line by line. Names of models are checked if a"
        " server answers. The exit status is 1 if something is wrong.",
    )
    for verb in (submitting, validating):
        verb.add_argument("file", type=Path, help="JSONL: custom_id, method, url, body; -: stdin")
        verb.add_argument(
            "--model", action="append", help="ask this one instead of the lines' own; may repeat"
        )
        verb.add_argument("--endpoint", choices=[*ENDPOINTS], help="default: the first line's url")
    submitting.add_argument("--window", default="24h", help="time until it expires (24h)")
    submitting.add_argument(
        "--metadata", action="append", metavar="KEY=VALUE", help="kept with it; may repeat"
    )
    submitting.set_defaults(func=submit.run)
    validating.set_defaults(func=submit.validate)
    retrying = verbs.add_parser(
        "retry",
        help="a new batch of the lines that have no answer",
        description="Start a new batch of the lines of an ended one that failed, expired or were"
        " cancelled. Prints its id.",
    )
    retrying.add_argument("id", help="its id, or the beginning of it")
    retrying.set_defaults(func=submit.retry)
    for verb in (submitting, retrying):
        verb.add_argument("--wait", action="store_true", help="follow it as `watch` does")


def _add_result_verbs(verbs: "Subparsers[argparse.ArgumentParser]") -> None:
    fetching = verbs.add_parser("fetch", help="get the answers of a batch that is over")
    fetching.add_argument("id", help="its id, or the beginning of it")
    fetching.add_argument("--output", type=Path, metavar="FILE", help="for answers (stdout)")
    fetching.add_argument("--errors", type=Path, metavar="FILE", help="for lines that failed")
    fetching.set_defaults(func=results.fetch)
    comparing = verbs.add_parser(
        "compare",
        help="answers of several models to the same requests, side by side",
        description="Join the answers of several batches by custom_id: of batches by their ids, or"
        " of a file that is submitted for each --model. Waits for those that still run. --json"
        " prints JSONL.",
    )
    comparing.add_argument("what", nargs="+", metavar="ID|FILE", help="several ids, or one file")
    comparing.add_argument("--model", action="append", help="for a file; at least two")
    comparing.add_argument("--output", type=Path, metavar="FILE", help="write JSONL there")
    comparing.add_argument(
        "-n", type=_count, default=20, metavar="N", help="rows of the table (20)"
    )
    comparing.set_defaults(func=compare.run, endpoint=None, window="24h", metadata=None)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _ls(args: argparse.Namespace) -> int:
    client = client_of(args)
    found: list[BatchProgress] = []
    while len(found) < args.n:
        query = {"limit": min(_PAGE, args.n - len(found))}
        after = {"after": found[-1].batch.id} if found else {}
        page = client.get("/admin/v1/batches", list[BatchProgress], **query, **after)
        found += page
        if len(page) < query["limit"]:
            break
    if args.json:
        print_json(found)
        return 0
    rows = [
        [
            short(each.batch.id),
            models_text(each),
            state_text(each),
            done_text(each.batch),
            f"{each.batch.request_counts.failed:,}",
            rate_text(each),
            eta_text(each),
            time_text(each.batch.created_at),
            each.problem or "",
        ]
        for each in found
    ]
    print_table(
        ["ID", "MODEL", "STATUS", "DONE", "FAILED", "RATE", "LEFT", "CREATED", "PROBLEM"], rows
    )
    return 0


def _show(args: argparse.Namespace) -> int:
    client = client_of(args)
    progress = find_batch(client, args.id)
    if args.json:
        print_json(progress)
        return 0
    for name, value in _facts(progress).items():
        print(f"{name:<10}{safe(value)}")
    errors = progress.batch.errors.data if progress.batch.errors else []
    for error in errors[:_MOST_SHOWN]:
        print(f"  {safe(submit.error_text(error))}")
    if len(errors) > _MOST_SHOWN:
        print(f"  and {len(errors) - _MOST_SHOWN} more")
    path = f"{path_of(progress.batch.id)}/failures"
    for failure in client.get(path, list[LineFailure], limit=_MOST_SHOWN):
        status = "not run" if failure.status_code is None else str(failure.status_code)
        print(f"  line {failure.line} {safe(failure.custom_id)}: {status} {safe(failure.message)}")
    return 0


def _facts(progress: BatchProgress) -> dict[str, str]:
    batch, counts = progress.batch, progress.batch.request_counts
    facts = {
        "id": batch.id,
        "status": state_text(progress),
        "problem": progress.problem or "",
        "models": models_text(progress),
        "endpoint": batch.endpoint,
        "lines": f"{counts.completed:,} answered and {counts.failed:,} failed of {counts.total:,}",
        "rate": rate_text(progress),
        "left": eta_text(progress),
        "tokens": "-",
        "retried": f"{progress.retried:,} times" if progress.retried else "",
        "waited": f"{format_duration(progress.waited_s)} for engines" if progress.waited_s else "",
        "created": time_text(batch.created_at),
        "started": time_text(batch.in_progress_at),
        "ended": time_text(ended_at(batch)),
        "expires": time_text(batch.expires_at),
        "input": batch.input_file_id,
        "output": batch.output_file_id or "-",
        "errors": batch.error_file_id or "-",
        "metadata": " ".join(f"{key}={value}" for key, value in (batch.metadata or {}).items()),
    }
    if batch.usage is not None:
        usage = batch.usage
        facts["tokens"] = f"{usage.input_tokens:,} read, {usage.output_tokens:,} written"
    if batch.status.is_final:
        del facts["expires"], facts["left"], facts["rate"]
    return {name: value for name, value in facts.items() if value}


def _pause(args: argparse.Namespace) -> int:
    return _act(args, "pause", "Paused {id}; lines that run end. `appliance batch resume` goes on.")


def _resume(args: argparse.Namespace) -> int:
    return _act(args, "resume", "Resumed {id}.")


def _cancel(args: argparse.Namespace) -> int:
    return _act(args, "cancel", "Cancelled {id}; `appliance batch fetch` gets what was answered.")


def _act(args: argparse.Namespace, action: str, told: str) -> int:
    client = client_of(args)
    batch_id = find_batch(client, args.id).batch.id
    progress = client.post(f"{path_of(batch_id)}/{action}", BatchProgress)
    if args.json:
        print_json(progress)
    else:
        print(told.format(id=short(batch_id)))
    return 0
