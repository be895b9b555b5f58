import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from appliance.errors import ConflictError, InvalidRequestError, ModelNotFoundError
from appliance.protocol.models import ModelChange, ModelCreate, ModelSettings, Task
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


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of a small model."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "model.safetensors").write_bytes(b"\0" * 64)
    return directory


def body(path: Path | str, model_id: str = "chat", **settings: object) -> ModelCreate:
    return msgspec.convert({"id": model_id, "path": str(path), **settings}, ModelCreate)


def change(**settings: object) -> ModelChange:
    return msgspec.convert(settings, ModelChange)


def files_of(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


async def reopened(database: Database) -> Registry:
    registry = Registry(database)
    await registry.load()
    return registry


async def test_created_model_is_known_and_stored(
    registry: Registry, database: Database, model: Path
) -> None:
    known = await registry.create(body(model, context_length=1024, pinned=True))
    assert registry.get("chat") == known
    assert known.settings.task is Task.GENERATE
    assert known.context_length == 1024
    assert known.facts is not None
    assert known.facts.weights_bytes == 64
    assert (await reopened(database)).models() == [known]


async def test_changed_settings_are_stored_and_the_others_stay(
    registry: Registry, database: Database, model: Path
) -> None:
    before = await registry.create(body(model, context_length=1024, pinned=True))
    after = await registry.change("chat", change(context_length=None, idle_timeout_s=5.0))
    assert after.context_length == 2048
    assert after.settings == msgspec.structs.replace(
        before.settings, context_length=None, idle_timeout_s=5.0
    )
    assert after.created_at == before.created_at
    assert (await reopened(database)).get("chat") == after


async def test_deleted_model_is_gone_for_good_and_its_files_stay(
    registry: Registry, database: Database, model: Path
) -> None:
    await registry.create(body(model))
    await registry.delete("chat")
    assert registry.models() == []
    assert (await reopened(database)).models() == []
    assert files_of(model) == ["config.json", "model.safetensors"]


async def test_unknown_model(registry: Registry) -> None:
    with pytest.raises(ModelNotFoundError, match="'nope' does not exist") as caught:
        registry.get("nope")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotFoundError):
        await registry.delete("nope")
    with pytest.raises(ModelNotFoundError):
        await registry.change("nope", change(pinned=True))


async def test_id_is_given_once(registry: Registry, model: Path) -> None:
    first = await registry.create(body(model))
    with pytest.raises(ConflictError, match="'chat' already"):
        await registry.create(body(model, pinned=True))
    assert registry.models() == [first]


@pytest.mark.parametrize(
    "model_id", ["a", "Org/Model-7B", "qwen2.5:1.5b", "x@main", "a+b", "a_b", "7", "a" * 128]
)
async def test_usual_ids_are_allowed(registry: Registry, model: Path, model_id: str) -> None:
    assert (await registry.create(body(model, model_id))).id == model_id


@pytest.mark.parametrize(
    "model_id",
    [
        "",
        " ",
        "-a",
        "/a",
        ".a",
        "a b",
        "a//b",
        "a/../b",
        "..",
        "a\tb",
        "ä",
        "a?b",
        "a#b",
        "a" * 129,
    ],
)
async def test_ids_that_mean_something_else_are_refused(
    registry: Registry, database: Database, model: Path, model_id: str
) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be the id") as caught:
        await registry.create(body(model, model_id))
    assert caught.value.param == "id"
    assert (await reopened(database)).models() == []


@pytest.mark.parametrize("path", ["model", "./model", "~/model", ""])
async def test_path_has_to_be_a_full_one(registry: Registry, path: str) -> None:
    with pytest.raises(InvalidRequestError, match="no absolute path") as caught:
        await registry.create(body(path))
    assert caught.value.param == "path"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "/other"],
        ["--model=/other"],
        ["--seed", "1", "--port", "80"],
        ["--host=0.0.0.0"],
        ["--uds=/tmp/x"],
        ["--api-key", "x"],
        ["--gpu-memory-utilization", "0.9"],
        ["--kv-cache-memory-bytes=1"],
        ["--tensor-parallel-size=2"],
        ["-tp", "2"],
        ["--served-model-name", "x"],
        ["--max-model-len=8"],
        ["--dtype", "half"],
        ["--config", "x.yaml"],
    ],
)
async def test_options_of_the_appliance_are_refused(
    registry: Registry, model: Path, arguments: list[str]
) -> None:
    with pytest.raises(InvalidRequestError, match="is set by the appliance") as caught:
        await registry.create(body(model, extra_args=arguments))
    assert caught.value.param == "extra_args"


async def test_other_options_are_passed_on(registry: Registry, model: Path) -> None:
    arguments = ["--seed", "7", "--model-impl", "transformers", "--hf-overrides", '{"a": 1}']
    known = await registry.create(body(model, extra_args=arguments))
    assert known.settings.extra_args == arguments


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "", "A=B", "a b", "1A"])
async def test_variables_of_the_appliance_are_refused(
    registry: Registry, model: Path, name: str
) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be set") as caught:
        await registry.create(body(model, env={"FINE": "1", name: "x"}))
    assert caught.value.param == "env"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("context_length", 15, "15 is out of range"),
        ("context_length", 2049, "2049 tokens are more than the model's 2048"),
        ("kv_cache_bytes", 0, "out of range"),
        ("memory_bytes", 0, "out of range"),
        ("max_sequences", 0, "out of range"),
        ("tp_size", 0, "out of range"),
        ("tp_size", 3, "8 attention heads cannot be split over 3"),
        ("tp_size", 65, "out of range"),
    ],
)
async def test_sizes_that_cannot_be_are_refused_when_made_and_when_changed(
    registry: Registry, model: Path, field: str, value: int, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        await registry.create(body(model, "bad", **{field: value}))
    assert caught.value.param == field
    good = await registry.create(body(model))
    with pytest.raises(InvalidRequestError, match=words):
        await registry.change("chat", change(**{field: value}))
    assert registry.models() == [good]


async def test_split_may_be_left_open(registry: Registry, database: Database, model: Path) -> None:
    known = await registry.create(body(model, tp_size="auto"))
    assert known.settings.ranks == 1
    assert known.split_over(4).settings.ranks == 4
    await registry.change("chat", change(exclusive=True, avoid_devices=["1"]))
    settings = (await reopened(database)).get("chat").settings
    assert (settings.tp_size, settings.exclusive, settings.avoid_devices) == ("auto", True, ["1"])


async def test_device_cannot_be_used_and_avoided(registry: Registry, model: Path) -> None:
    with pytest.raises(InvalidRequestError, match="1 cannot be used and avoided") as caught:
        await registry.create(body(model, devices=["0", "1"], avoid_devices=["1"]))
    assert caught.value.param == "avoid_devices"


def test_settings_of_an_earlier_version_are_read() -> None:
    stored = b'{"path":"/m","task":"generate","tp_size":2,"devices":["0"]}'
    settings = msgspec.json.decode(stored, type=ModelSettings)
    assert (settings.tp_size, settings.avoid_devices, settings.exclusive) == (2, [], False)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"path":"/m","task":"generate","tp_size":"many"}', type=ModelSettings)


async def test_embedding_model_cannot_generate(registry: Registry, model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["BertModel"]}))
    with pytest.raises(InvalidRequestError, match="cannot generate text"):
        await registry.create(body(model, task="generate"))
    assert (await registry.create(body(model))).settings.task is Task.EMBED


async def test_model_whose_files_are_gone_stays_known_with_its_problem(
    registry: Registry, database: Database, model: Path
) -> None:
    await registry.create(body(model))
    shutil.move(model, f"{model}.away")
    again = await reopened(database)
    known = again.get("chat")
    assert known.facts is None
    assert "is no directory" in (known.problem or "")
    assert known.context_length == 0

    shutil.move(f"{model}.away", model)
    await again.read_again("chat")
    assert again.get("chat") == registry.get("chat")
