"""Stored models and the loads that they needed. Functions for `Database.read` and `write`."""

from datetime import datetime

import msgspec

from appliance.protocol.models import ModelSettings
from appliance.store.tables import EngineRunRow, ModelRow, SleepVerdictRow


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `models`."""

    id: str
    settings: ModelSettings
    created_at: datetime


class LoadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `engine_runs`; durations in seconds. 0 stands for what was not measured."""

    model: str
    fingerprint: str
    load_s: float
    phases: dict[str, float]
    memory_bytes: int
    """Of all its processes in RAM."""
    at: datetime
    configuration: str = ""
    """The fingerprint without the engine environment."""
    rank_bytes: int = 0
    """On the device of the fullest rank, its KV cache in full."""
    kv_cache_bytes: int = 0
    """The budget of each rank."""
    weights_bytes: int = 0
    """Of one rank, as the engine logged it."""
    graphs_bytes: int = 0


def all_models() -> list[StoredModel]:
    """Every known model, oldest first."""
    return [
        StoredModel(
            id=row.id,
            settings=msgspec.json.decode(row.settings, type=ModelSettings),
            created_at=datetime.fromisoformat(row.created_at),
        )
        for row in ModelRow.select().order_by(ModelRow.created_at)
    ]


def put_model(model: StoredModel) -> None:
    """Add or replace."""
    ModelRow.replace(
        id=model.id,
        settings=msgspec.json.encode(model.settings).decode(),
        created_at=model.created_at.isoformat(),
    ).execute()


def delete_model(model_id: str) -> None:
    """Forget a model and what was learnt about it; its files stay."""
    ModelRow.delete().where(ModelRow.id == model_id).execute()
    EngineRunRow.delete().where(EngineRunRow.model == model_id).execute()
    SleepVerdictRow.delete().where(SleepVerdictRow.model == model_id).execute()


def all_loads(newest_per_fingerprint: int = 8) -> list[LoadRecord]:
    """The newest loads of each configuration, oldest first."""
    kept: dict[str, list[LoadRecord]] = {}
    for row in EngineRunRow.select().order_by(EngineRunRow.id.desc()):
        loads = kept.setdefault(row.fingerprint, [])
        if len(loads) < newest_per_fingerprint:
            loads.append(
                LoadRecord(
                    model=row.model,
                    fingerprint=row.fingerprint,
                    load_s=row.load_s,
                    phases=msgspec.json.decode(row.phases, type=dict[str, float]),
                    memory_bytes=row.memory_bytes,
                    at=datetime.fromisoformat(row.at),
                    configuration=row.configuration,
                    rank_bytes=row.rank_bytes,
                    kv_cache_bytes=row.kv_cache_bytes,
                    weights_bytes=row.weights_bytes,
                    graphs_bytes=row.graphs_bytes,
                )
            )
    return [load for loads in kept.values() for load in reversed(loads)]


def add_load(load: LoadRecord) -> None:
    """Remember a load; only the newest hundred of a configuration are kept."""
    EngineRunRow.create(
        model=load.model,
        fingerprint=load.fingerprint,
        load_s=load.load_s,
        phases=msgspec.json.encode(load.phases).decode(),
        memory_bytes=load.memory_bytes,
        at=load.at.isoformat(),
        configuration=load.configuration,
        rank_bytes=load.rank_bytes,
        kv_cache_bytes=load.kv_cache_bytes,
        weights_bytes=load.weights_bytes,
        graphs_bytes=load.graphs_bytes,
    )
    newest = (
        EngineRunRow.select(EngineRunRow.id)
        .where(EngineRunRow.fingerprint == load.fingerprint)
        .order_by(EngineRunRow.id.desc())
        .limit(100)
    )
    EngineRunRow.delete().where(
        EngineRunRow.fingerprint == load.fingerprint, EngineRunRow.id.not_in(newest)
    ).execute()
