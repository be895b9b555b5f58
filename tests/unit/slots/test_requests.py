"""From a model's settings to what the planner is asked, and from its refusals back to settings."""

import argparse
import json
import random
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cli.add import add_parsers, settings_of
from appliance.estimate.estimator import Estimate, estimate
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import read_facts
from appliance.registry.registry import KnownModel
from appliance.slots.planner import plan
from appliance.slots.plans import DeviceRoom, Place, Plan, Refuse
from appliance.slots.requests import Changes, plan_request, tp_sizes, usual_tp_size
from appliance.units import GIB

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "dtype": "bfloat16",
}
MakeKnown = Callable[..., KnownModel]


@pytest.fixture
def make_known(tmp_path: Path) -> MakeKnown:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 1024)
    facts = read_facts(tmp_path)

    def make(**settings: Any) -> KnownModel:
        return KnownModel(
            id="llama",
            settings=ModelSettings(path=str(tmp_path), task=Task.GENERATE, **settings),
            facts=facts,
            problem=None,
            created_at=datetime.now(UTC),
        )

    return make


def gpus(*sizes_gib: int) -> list[DeviceRoom]:
    return [
        DeviceRoom(id=f"GPU-{index}", index=index, total_bytes=size * GIB, free_bytes=size * GIB)
        for index, size in enumerate(sizes_gib)
    ]


def need(known: KnownModel) -> Estimate:
    assert known.facts is not None
    return estimate(known.facts, known.settings, known.context_length, DeviceKind.GPU)


def planned(known: KnownModel, rooms: list[DeviceRoom]) -> Plan:
    changes = Changes(known, len(rooms), DeviceKind.GPU, None)
    return plan(rooms, [], plan_request(known, rooms, need, changes))


def test_number_of_the_owner_is_the_only_option(make_known: MakeKnown) -> None:
    known = make_known(tp_size=4)
    (option,) = plan_request(known, gpus(80, 80), need).options
    assert (option.tp_size, option.need_bytes) == (4, need(known).total_bytes)


def test_open_split_offers_what_the_model_allows_on_devices_that_it_may_use(
    make_known: MakeKnown,
) -> None:
    known = make_known(tp_size="auto", avoid_devices=["0"])
    request = plan_request(known, gpus(*[80] * 6), need)
    assert [option.tp_size for option in request.options] == [1, 2, 4]
    needs = [option.need_bytes for option in request.options]
    assert needs == sorted(needs, reverse=True)
    assert tp_sizes(make_known(tp_size="auto", devices=["0"]), 1) == [1]


def test_open_split_takes_as_few_devices_as_it_fits_on(make_known: MakeKnown) -> None:
    known = make_known(tp_size="auto", context_length=8192)
    for sizes, ranks in (((320, 320), 1), ((120,) * 4, 2), ((48,) * 8, 4), ((30,) * 8, 8)):
        decision = planned(known, gpus(*sizes))
        assert isinstance(decision, Place)
        assert len(decision.devices) == ranks
        rooms = gpus(*sizes)
        assert usual_tp_size(plan_request(known, rooms, need), rooms) == ranks


def test_model_that_fits_nowhere_is_told_with_its_widest_split(make_known: MakeKnown) -> None:
    rooms = gpus(8, 8, 8, 8)
    request = plan_request(make_known(tp_size="auto"), rooms, need)
    assert usual_tp_size(request, rooms) == 4


def test_settings_reach_the_planner(make_known: MakeKnown) -> None:
    known = make_known(devices=["0", "2"], avoid_devices=["2"], exclusive=True)
    request = plan_request(known, gpus(400, 400, 400), need)
    assert (request.devices, request.avoid) == (frozenset({"0", "2"}), frozenset({"2"}))
    assert request.is_exclusive


def typed(command: str, known: KnownModel) -> KnownModel:
    """As if its owner had typed that."""
    program, *words = shlex.split(command)
    assert program == "appliance"
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    args = parser.parse_args(words)
    assert args.model == known.id
    settings = msgspec.structs.replace(known.settings, **settings_of(args))
    return replace(known, settings=settings)


def test_what_a_refusal_suggests_is_accepted_when_it_is_typed(make_known: MakeKnown) -> None:
    dice = random.Random(5)
    kinds = set()
    for _ in range(40):
        size = dice.choice((16, 24, 48, 80, 160, 200))
        rooms = gpus(*[size] * dice.choice((1, 2, 4, 8)))
        known = make_known(
            tp_size=dice.choice((1, 2, 4, "auto")),
            context_length=dice.choice((None, 4096, 65536)),
            devices=dice.choice(([], [], ["0"])),
            avoid_devices=dice.choice(([], [], ["1"])),
            extra_args=dice.choice(([], ["--enable-prefix-caching"])),
        )
        decision = planned(known, rooms)
        if isinstance(decision, Refuse):
            for each in decision.suggestions:
                kinds.add(each.kind)
                again = planned(typed(each.command, known), rooms)
                assert isinstance(again, Place), (each, again)
    assert kinds >= {"context", "tp", "devices", "avoid", "quantization"}, kinds
