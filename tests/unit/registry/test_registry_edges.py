"""Edge cases that were wrong once."""

import asyncio
import contextlib
import json
from pathlib import Path

import msgspec
import pytest

from appliance.errors import ConflictError, InvalidRequestError
from appliance.protocol.models import ModelCreate
from appliance.registry.facts import read_facts
from appliance.registry.registry import Registry
from appliance.store.database import Database

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "dtype": "bfloat16",
}


def checkpoint(directory: Path, config: object = CONFIG, **files: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(b"\0" * 64)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": None},
        {"num_attention_heads": None},
        {"hidden_size": None},
        {"num_hidden_layers": "two"},
        {"max_position_embeddings": [1]},
        {"architectures": {"a": 1}},
    ],
)
def test_odd_config_is_read_or_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with contextlib.suppress(InvalidRequestError):
        read_facts(checkpoint(tmp_path / "m", {**CONFIG, **change}))


@pytest.mark.parametrize("name", ["tokenizer_config__json", "sentence_bert_config__json"])
def test_odd_side_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        read_facts(checkpoint(tmp_path / "m", **{name: []}))


async def test_odd_config_of_one_model_does_not_keep_the_server_from_starting(
    tmp_path: Path,
) -> None:
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        path = checkpoint(tmp_path / "m")
        body = ModelCreate(id="chat", path=str(path))
        await Registry(database).create(body)
        checkpoint(path, {**CONFIG, "num_attention_heads": None})
        await Registry(database).load()
    finally:
        await database.close()


@pytest.mark.parametrize(
    "extra_args",
    [
        ["--served_model_name", "x"],
        ["--gpu_memory_utilization=0.9"],
        ["--tensor-parallel", "2"],
        ["-tp2"],
        ["--data-parallel-size", "2"],
        ["--pipeline-parallel-size", "2"],
    ],
)
async def test_owned_options_in_other_spellings_are_refused(
    tmp_path: Path, extra_args: list[str]
) -> None:
    await refused(tmp_path, "extra_args", extra_args=extra_args)


async def test_mark_of_an_engine_cannot_be_changed(tmp_path: Path) -> None:
    await refused(tmp_path, "env", env={"VLLM_APPLIANCE_ENGINE": "x"})


async def test_id_with_a_line_end_is_refused(tmp_path: Path) -> None:
    await refused(tmp_path, "id", id="chat\n")


async def refused(tmp_path: Path, param: str, **fields: object) -> None:
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        body = {"id": "chat", "path": str(checkpoint(tmp_path / "m")), **fields}
        with pytest.raises(InvalidRequestError) as caught:
            await Registry(database).create(msgspec.convert(body, ModelCreate))
        assert caught.value.param == param
    finally:
        await database.close()


async def test_id_is_given_once_to_requests_at_the_same_time(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        registry = Registry(database)
        body = ModelCreate(id="chat", path=str(checkpoint(tmp_path / "m")))
        results = await asyncio.gather(
            registry.create(body), registry.create(body), return_exceptions=True
        )
        assert [isinstance(each, ConflictError) for each in results].count(True) == 1
    finally:
        await database.close()
