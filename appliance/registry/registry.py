"""Known models: settings from the store, facts from the files. Owner: the event loop."""

import asyncio
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.errors import ConflictError, InvalidRequestError, ModelNotFoundError
from appliance.protocol.models import ModelChange, ModelCreate, ModelSettings, Task
from appliance.registry.facts import ModelFacts, read_facts
from appliance.store.database import Database
from appliance.store.models import StoredModel, all_models, delete_model, put_model

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
# The last part of a path of the management API that is no model.
_RESERVED = {"load", "unload", "plan", "logs"}
# Options that say where and how an engine runs belong to the appliance.
_OWNED_FLAGS = {
    "--model", "--served-model-name", "--host", "--port", "--uds", "--tensor-parallel-size",
    "-tp", "--kv-cache-memory-bytes", "--gpu-memory-utilization", "--api-key", "--root-path",
    "--ssl-keyfile", "--ssl-certfile", "--enable-sleep-mode", "--max-model-len", "--dtype",
    "--max-num-seqs", "--config", "--pipeline-parallel-size", "-pp", "--data-parallel-size",
    "-dp", "--headless", "--nnodes", "--api-server-count", "-asc",
    "--distributed-executor-backend", "--middleware", "--disable-log-stats",
}  # fmt: skip
_OWNED_VARIABLES = {
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_PRELOAD", "VLLM_API_KEY",
    "VLLM_SERVER_DEV_MODE", "TMPDIR",
}  # fmt: skip
_SHORTEST_PREFIX = 4
_MOST_BYTES = 2**50
_MOST_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that can be loaded. `facts` is None where its files are gone."""

    id: str
    settings: ModelSettings
    facts: ModelFacts | None
    problem: str | None
    created_at: datetime

    @property
    def context_length(self) -> int:
        """Tokens that a request may use."""
        most = self.facts.max_context if self.facts else 0
        return min(self.settings.context_length or most, most) or most

    def split_over(self, devices: int) -> "KnownModel":
        """The model with that tensor parallel size, where it was left open."""
        return replace(self, settings=msgspec.structs.replace(self.settings, tp_size=devices))


class Registry:
    """Add, find, change and delete models; each change is stored before it counts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._models: dict[str, KnownModel] = {}
        self._being_added: set[str] = set()

    async def load(self) -> None:
        """Read the models from the store and their facts from their files."""
        for stored in await self._database.read(all_models):
            self._models[stored.id] = await asyncio.to_thread(_known, stored)

    def models(self) -> list[KnownModel]:
        """All models, oldest first."""
        return list(self._models.values())

    def get(self, model_id: str) -> KnownModel:
        """The model; raises ModelNotFoundError."""
        try:
            return self._models[model_id]
        except KeyError:
            raise ModelNotFoundError(
                f"The model {model_id!r} does not exist.",
                hint="GET /v1/models and `appliance ls` list the models of this server.",
                param="model",
            ) from None

    async def read_again(self, model_id: str) -> None:
        """Look again for the files of a model that had none."""
        known = self._models.get(model_id)
        if known is None or known.facts is not None:
            return
        stored = StoredModel(id=known.id, settings=known.settings, created_at=known.created_at)
        found = await asyncio.to_thread(_known, stored)
        if self._models.get(model_id) is known:
            self._models[model_id] = found

    async def create(self, body: ModelCreate) -> KnownModel:
        """Add a model. Raises ConflictError and InvalidRequestError."""
        check_id(body.id)
        if body.id in self._models:
            raise _exists(body.id)
        fields = msgspec.structs.asdict(body)
        del fields["id"]
        path = Path(body.path)
        if not path.is_absolute():
            raise InvalidRequestError(
                f"{body.path!r} is no absolute path.",
                hint="The server needs the full path of the model's directory.",
                param="path",
            )
        facts = await asyncio.to_thread(read_facts, path)
        if body.id in self._models or body.id in self._being_added:
            raise _exists(body.id)
        fields |= {"path": str(path), "task": body.task or facts.task}
        self._being_added.add(body.id)
        try:
            return await self._put(body.id, ModelSettings(**fields), facts, datetime.now(UTC))
        finally:
            self._being_added.discard(body.id)

    async def change(self, model_id: str, body: ModelChange) -> KnownModel:
        """Change some settings. Raises ModelNotFoundError and InvalidRequestError."""
        known = self.get(model_id)
        changes = {
            field: value
            for field, value in msgspec.structs.asdict(body).items()
            if value is not msgspec.UNSET
        }
        facts = await asyncio.to_thread(read_facts, Path(known.settings.path))
        self.get(model_id)
        settings = msgspec.structs.replace(known.settings, **changes)
        return await self._put(model_id, settings, facts, known.created_at)

    async def move(self, model_id: str, path: Path) -> KnownModel:
        """Its checkpoint is elsewhere now. Raises ModelNotFoundError and InvalidRequestError."""
        known = self.get(model_id)
        facts = await asyncio.to_thread(read_facts, path)
        self.get(model_id)
        settings = msgspec.structs.replace(known.settings, path=str(path))
        return await self._put(model_id, settings, facts, known.created_at)

    async def delete(self, model_id: str) -> None:
        """Forget a model; its files stay. Raises ModelNotFoundError."""
        self.get(model_id)
        await self._database.write(lambda: delete_model(model_id))
        del self._models[model_id]

    async def _put(
        self, model_id: str, settings: ModelSettings, facts: ModelFacts, created_at: datetime
    ) -> KnownModel:
        _check_settings(settings, facts)
        stored = StoredModel(id=model_id, settings=settings, created_at=created_at)
        await self._database.write(lambda: put_model(stored))
        known = KnownModel(
            id=model_id, settings=settings, facts=facts, problem=None, created_at=created_at
        )
        self._models[model_id] = known
        return known


def _exists(model_id: str) -> ConflictError:
    return ConflictError(
        f"There is a model {model_id!r} already.",
        hint="Choose another id, or change the settings of that one.",
        param="id",
    )


def _known(stored: StoredModel) -> KnownModel:
    facts: ModelFacts | None = None
    problem = None
    try:
        facts = read_facts(Path(stored.settings.path))
    except InvalidRequestError as error:
        problem = str(error)
    return KnownModel(
        id=stored.id,
        settings=stored.settings,
        facts=facts,
        problem=problem,
        created_at=stored.created_at,
    )


def check_id(model_id: str) -> None:
    """Raises InvalidRequestError for what cannot be the id of a model."""
    parts = model_id.split("/")
    if not _ID.fullmatch(model_id) or ".." in parts or "" in parts or parts[-1] in _RESERVED:
        raise InvalidRequestError(
            f"{model_id!r} cannot be the id of a model.",
            hint="Use letters, digits and . _ - / : @ +, at most 128, starting with a letter"
            " or a digit; the last part cannot be load, unload, plan or logs.",
            param="id",
        )


def _check_settings(settings: ModelSettings, facts: ModelFacts) -> None:
    _between(settings.context_length, 16, 2**31, "context_length")
    _between(settings.kv_cache_bytes, 1, _MOST_BYTES, "kv_cache_bytes")
    _between(settings.memory_bytes, 1, _MOST_BYTES, "memory_bytes")
    _between(settings.max_sequences, 1, 2**20, "max_sequences")
    _between(settings.ranks, 1, 64, "tp_size")
    _between(settings.idle_timeout_s, -1, _MOST_SECONDS, "idle_timeout_s")
    context = settings.context_length
    if context is not None and context > facts.max_context:
        _refuse(
            "context_length",
            f"{context} tokens are more than the model's {facts.max_context}",
            f"Use at most {facts.max_context}.",
        )
    if facts.heads % settings.ranks:
        _refuse(
            "tp_size",
            f"{facts.heads} attention heads cannot be split over {settings.ranks} devices",
            "Tensor parallelism needs a divisor of the number of heads.",
        )
    both = sorted(set(settings.devices) & set(settings.avoid_devices))
    if both:
        _refuse(
            "avoid_devices",
            f"{', '.join(both)} cannot be used and avoided at once",
            "Leave it out of one of them.",
        )
    if settings.task is Task.GENERATE and facts.architecture.startswith("Bert"):
        _refuse("task", f"{facts.architecture} cannot generate text", "Use task embed.")
    _check_extra_args(settings.extra_args)
    _check_variables(settings.env)


def _check_extra_args(arguments: list[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            _refuse("extra_args", "an argument holds a zero byte", "Leave it out.")
        # vLLM's parser takes underscores for dashes, and unique beginnings of an option.
        flag = argument.split("=", 1)[0].replace("_", "-")
        is_owned = flag in _OWNED_FLAGS
        if flag.startswith("--") and len(flag) > _SHORTEST_PREFIX:
            is_owned = is_owned or any(owned.startswith(flag) for owned in _OWNED_FLAGS)
        elif flag.startswith("-") and not flag.startswith("--"):
            is_owned = is_owned or flag.rstrip("0123456789") in _OWNED_FLAGS
        if is_owned:
            _refuse(
                "extra_args",
                f"{flag} is set by the appliance",
                "Leave it out and use the model's own settings.",
            )


def _check_variables(env: dict[str, str]) -> None:
    for name, value in env.items():
        is_owned = name in _OWNED_VARIABLES or name.startswith("VLLM_APPLIANCE_")
        if is_owned or not name.isidentifier() or "\0" in value:
            _refuse("env", f"the variable {name!r} cannot be set", "Leave it out.")


def _between(value: float | None, least: float, most: float, param: str) -> None:
    if value is not None and not least <= value <= most:
        _refuse(param, f"{value} is out of range", f"Use a value from {least:g} to {most:g}.")


def _refuse(param: str, problem: str, hint: str) -> None:
    raise InvalidRequestError(f"{param}: {problem}.", hint=hint, param=param)
