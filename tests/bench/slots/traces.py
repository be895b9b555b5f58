"""The traces: seeded, so that each run sees the same requests."""

import random
from collections.abc import Callable

from appliance.units import GIB
from tests.bench.slots.optimum import STEP_S
from tests.bench.slots.parts import ModelSpec, Request, Session, Trace, devices

SEED = 20240607
_HOUR_S = 3600.0
_IDLE_S = 900.0


def all_traces(seed: int = SEED) -> list[Trace]:
    """In the order of the report."""
    return [make(seed) for make in _MAKERS]


def model(name: str, gib: float, load_s: float, tp_size: int = 1) -> ModelSpec:
    """A model by its usual numbers."""
    return ModelSpec(name=name, need_bytes=int(gib * GIB), load_s=load_s, tp_size=tp_size)


def bursty(seed: int = SEED) -> Trace:
    """People who chat with one model for minutes, rest, then take another."""
    chance = random.Random(seed)
    models = tuple(model(f"chat-{number}", 18, 10 + 5 * (number % 3)) for number in range(6))
    return Trace(
        name="bursty",
        about="4 people chat for minutes with one of 6 models, rest, take another; 2 devices",
        devices=devices(24, 24),
        models=models,
        sessions=_chats(chance, models, [6, 4, 3, 2, 1, 1], people=4, rest_s=400),
        horizon_s=4 * _HOUR_S,
        idle_timeout_s=_IDLE_S,
    )


def alternation(seed: int = SEED) -> Trace:
    """Two crowds, one device."""
    chance = random.Random(seed + 1)
    models = (model("left", 18, 10), model("right", 18, 10))
    return Trace(
        name="a-b",
        about="2 models in turn, 0.4 requests/s; 1 device that holds one of them",
        devices=devices(24),
        models=models,
        requests=_poisson(chance, models, [1, 1], per_s=0.4, until=2 * _HOUR_S),
        horizon_s=2 * _HOUR_S,
    )


def zipf(skew: float, per_s: float, seed: int = SEED) -> Trace:
    """Poisson arrivals; popularity by Zipf's law."""
    chance = random.Random(seed + round(skew * 10))
    models = tuple(
        model(f"zipf-{number}", 10 + 6 * (number % 3), 10 + 4 * (number % 5))
        for number in range(12)
    )
    weights = [1 / (rank + 1) ** skew for rank in range(len(models))]
    return Trace(
        name=f"zipf-{skew:g}-{per_s:g}",
        about=f"Poisson, {per_s:g} requests/s, 12 models by Zipf {skew:g}; 3 devices",
        devices=devices(24, 24, 40),
        models=models,
        requests=_poisson(chance, models, weights, per_s=per_s, until=2 * _HOUR_S),
        horizon_s=2 * _HOUR_S,
        idle_timeout_s=_IDLE_S,
    )


def rotation(_: int = SEED) -> Trace:
    """Each request is for the model that was asked for longest ago."""
    count = 6
    models = tuple(model(f"turn-{number}", 18, 12) for number in range(count))
    requests = tuple(
        Request(model=models[number % count].name, at=9.0 * number, service_s=4.0)
        for number in range(400)
    )
    return Trace(
        name="rotation",
        about="6 models in strict rotation, a request each 9 s; 3 devices that hold one each",
        devices=devices(24, 24, 24),
        models=models,
        requests=requests,
        horizon_s=_HOUR_S,
    )


def day(seed: int = SEED) -> Trace:
    """A day in two hours: few, many and few people; embeddings are always loaded."""
    chance = random.Random(seed + 2)
    embedding = model("embedding", 4, 6)
    chats = tuple(
        model(f"day-{number}", gib, load_s, tp_size)
        for number, (gib, load_s, tp_size) in enumerate(
            [(18, 12, 1), (18, 15, 1), (10, 8, 1), (30, 25, 2), (60, 40, 2), (14, 10, 1)] * 2
        )
    )
    weights = [1 / (rank + 1) for rank in range(len(chats))]
    embeddings = tuple(
        Request(model=embedding.name, at=20.0 * number + chance.random() * 20, service_s=0.2)
        for number in range(360)
    )
    people = [
        request
        for hour, per_s in enumerate((0.02, 0.1, 0.2, 0.15, 0.1, 0.03))
        for request in _poisson(
            chance, chats, weights, per_s=per_s, begin=1200.0 * hour, until=1200.0 * (hour + 1)
        )
    ]
    return Trace(
        name="day",
        about="quiet, busy, quiet; 12 models, 4 with TP of 2, embeddings pinned; 8 devices",
        devices=devices(80, 80, 48, 48, 24, 24, 24, 24),
        models=(embedding, *chats),
        requests=tuple(sorted((*embeddings, *people), key=lambda request: request.at)),
        horizon_s=2 * _HOUR_S,
        idle_timeout_s=_IDLE_S,
        pinned=frozenset({embedding.name}),
    )


def batches(seed: int = SEED) -> Trace:
    """People, and two batches that have work all the time."""
    chance = random.Random(seed + 3)
    models = tuple(model(f"mixed-{number}", 18, 12) for number in range(4))
    batch = (model("batch-0", 18, 12), model("batch-1", 18, 12))
    return Trace(
        name="batch",
        about="3 people with 4 models, 2 batches that always have work for 2 more; 2 devices",
        devices=devices(24, 24),
        models=(*models, *batch),
        sessions=(
            *_chats(chance, models, [4, 2, 1, 1], people=3, rest_s=400, until=2 * _HOUR_S),
            *(
                Session(
                    model=each.name,
                    start=60.0,
                    end=2 * _HOUR_S,
                    service_s=20.0,
                    think_s=0.01,
                    is_batch=True,
                )
                for each in batch
                for _ in range(8)
            ),
        ),
        horizon_s=2 * _HOUR_S,
        idle_timeout_s=_IDLE_S,
    )


def _chats(
    chance: random.Random,
    models: tuple[ModelSpec, ...],
    weights: list[float],
    *,
    people: int,
    rest_s: float,
    until: float = 4 * _HOUR_S,
) -> tuple[Session, ...]:
    """Each person chats for minutes, rests, chats with another model."""
    sessions = []
    for _ in range(people):
        now = _on_grid(chance.expovariate(1 / rest_s))
        while now < until:
            end = min(now + _on_grid(chance.uniform(180, 900)), until)
            sessions.append(
                Session(
                    model=chance.choices(models, weights)[0].name,
                    start=now,
                    end=end,
                    service_s=round(chance.uniform(6, 25), 1),
                    think_s=round(chance.uniform(10, 40), 1),
                )
            )
            now = end + _on_grid(chance.expovariate(1 / rest_s))
    return tuple(sessions)


def _poisson(
    chance: random.Random,
    models: tuple[ModelSpec, ...],
    weights: list[float],
    *,
    per_s: float,
    until: float,
    begin: float = 0.0,
) -> tuple[Request, ...]:
    requests, now = [], begin
    while (now := now + chance.expovariate(per_s)) < until:
        requests.append(
            Request(
                model=chance.choices(models, weights)[0].name,
                at=now,
                service_s=min(chance.lognormvariate(1.6, 0.8), 60.0),
            )
        )
    return tuple(requests)


def _on_grid(seconds: float) -> float:
    return STEP_S * max(round(seconds / STEP_S), 1)


_MAKERS: tuple[Callable[[int], Trace], ...] = (
    bursty,
    alternation,
    lambda seed: zipf(0.8, 0.05, seed),
    lambda seed: zipf(0.8, 0.2, seed),
    lambda seed: zipf(1.4, 0.3, seed),
    rotation,
    day,
    batches,
)
