"""estimate: what a model needs, and which devices it fits."""

import argparse
import json
from contextlib import closing
from pathlib import Path

import msgspec

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.output import print_json, print_table, safe
from appliance.errors import InvalidRequestError
from appliance.estimate.report import Target, changed, report, targets_of
from appliance.protocol.devices import Device, DeviceKind
from appliance.protocol.estimates import Basis, EstimateReport, EstimateRequest, MemoryParts
from appliance.protocol.models import ModelSettings
from appliance.registry.facts import ModelFacts, facts_from_config, read_facts
from appliance.units import format_size, parse_size

Subparsers = argparse._SubParsersAction

_PARTS = (
    ("weights", "weights_bytes"),
    ("KV cache", "kv_cache_bytes"),
    ("activations", "activations_bytes"),
    ("CUDA graphs", "graphs_bytes"),
    ("runtime", "context_bytes"),
)


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser("estimate", help="what a model needs, and where it fits")
    parser.add_argument(
        "model", help="a model of the server, or a directory here, as ./gemma or /models/gemma"
    )
    parser.add_argument("--ctx", type=int, metavar="TOKENS", help="context; default: as it is set")
    parser.add_argument("--tp", type=int, metavar="N", help="split over this many devices")
    parser.add_argument(
        "--gpu", metavar="SIZE|INDEX", help="a GPU of this size, as 24GiB, or a device here"
    )
    parser.set_defaults(func=_estimate)


def _estimate(args: argparse.Namespace) -> int:
    request = request_of(args.ctx, args.tp, args.gpu)
    with closing(ServerClient(args.url)) as client:
        found = _ask(client, args.model, request)
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 1 if found.fits is False or found.problem else 0


def _ask(client: ServerClient, model: str, request: EstimateRequest) -> EstimateReport:
    if model.startswith((".", "/", "~")):
        return of_directory(Path(model).expanduser(), request, _devices(client))
    asked = msgspec.structs.asdict(request)
    given = {name: value for name, value in asked.items() if value is not None}
    return client.get(f"/admin/v1/models/{model}/estimate", EstimateReport, **given)


def request_of(context: int | None, tp_size: int | None, gpu: str | None) -> EstimateRequest:
    """A plain number names a device, a number with a unit is a size. Raises ValueError."""
    is_size = gpu is not None and gpu[:1].isdigit() and not gpu.isdecimal()
    return EstimateRequest(
        context_length=context,
        tp_size=tp_size,
        device=None if is_size else gpu,
        device_bytes=parse_size(gpu) if is_size and gpu else None,
    )


def of_directory(
    directory: Path, request: EstimateRequest, devices: list[Device]
) -> EstimateReport:
    """A model that no server knows. Raises InvalidRequestError."""
    facts = _facts(directory)
    targets = [
        Target(
            id=each.id,
            index=each.index,
            name=each.name,
            kind=each.kind,
            total_bytes=each.total_bytes,
            free_bytes=each.free_bytes,
        )
        for each in devices
        if each.problem is None
    ]
    settings = ModelSettings(path=str(directory), task=facts.task)
    return report(
        directory.absolute().name,
        facts,
        changed(settings, request),
        targets_of(request, targets),
        kind=DeviceKind.GPU,
    )


def _facts(directory: Path) -> ModelFacts:
    """A config.json alone will do: before a download there is no more."""
    file = directory / "config.json"
    has_weights = any(next(directory.glob(end), None) for end in ("*.safetensors", "*.bin", "*.pt"))
    if has_weights or not file.is_file():
        return read_facts(directory)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"{file} cannot be read: {error}.", hint="Check the file and its rights."
        ) from error
    if not isinstance(config, dict):
        raise InvalidRequestError(f"{file} holds no object.", hint="Fetch it again.")
    facts = facts_from_config(config)
    if not facts.tensors:
        raise InvalidRequestError(
            f"The weights of {facts.architecture} do not follow from its config alone.",
            hint="Fetch the weights, or at least the first part of each *.safetensors file.",
        )
    return facts


def _devices(client: ServerClient) -> list[Device]:
    """None without a server: the estimate itself needs none."""
    try:
        return client.get("/admin/v1/devices", list[Device])
    except ServerError:
        return []


def need_text(need: MemoryParts) -> str:
    """The sum, where it comes from and how far it may be off."""
    if need.basis is Basis.CHOSEN:
        return f"{format_size(need.total_bytes)} (as you have set it)"
    margin = round(need.margin_ratio * 100)
    return f"about {format_size(need.total_bytes)} ({need.basis.value}, within {margin} %)"


def _print(found: EstimateReport) -> None:
    print(
        f"{safe(found.model)}: {safe(found.architecture)},"
        f" {found.context_length} of up to {found.max_context} tokens of context"
    )
    where = "a device" if found.tp_size == 1 else f"each of {found.tp_size} devices"
    print(f"\nIt needs {need_text(found.rank)} on {where}:")
    for name, field in _PARTS:
        size = getattr(found.rank, field)
        if size:
            print(f"  {name:<13}{format_size(size):>10}")
    if found.kv_recommended_bytes:
        print(
            f"\nA token takes {format_size(found.kv_bytes_per_token)} of KV cache. One request of"
            f" the whole context needs {format_size(found.kv_smallest_bytes)},"
            f" {found.kv_requests} at once {format_size(found.kv_recommended_bytes)}."
        )
    sizes = ", ".join(str(size) for size in found.tp_sizes)
    print(f"It can be split over so many devices: {sizes}.")
    if found.problem:
        print(f"It cannot be split over {found.tp_size}: {safe(found.problem)}.")
    if found.devices:
        _print_devices(found)
    large = sum(each.fits for each in found.devices)
    if found.fits is False and large:
        print(f"It wants {found.tp_size} devices, and {large} of these would do.")
    if found.remedies:
        print("\nWhat would fit:")
        for each in found.remedies:
            print(f"  {each.text}: {format_size(each.need_bytes)} (`{safe(each.command)}`)")


def _print_devices(found: EstimateReport) -> None:
    print()
    rows = [
        [
            str(each.device_index) if each.device_id else "-",
            each.name,
            format_size(each.total_bytes),
            format_size(each.free_bytes),
            "yes" if each.fits_now else ("once it is free" if each.fits else "no"),
            _tokens(each.largest_context),
            _tokens(each.largest_context_single),
        ]
        for each in found.devices
    ]
    several = f"CONTEXT FOR {found.kv_requests or 1}"
    headings = ["DEVICE", "NAME", "SIZE", "FREE", "FITS", several, "FOR ONE"]
    print_table(headings, rows)


def _tokens(tokens: int) -> str:
    return str(tokens) if tokens else "-"
