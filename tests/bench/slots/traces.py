"""The traces: seeded, so that each run sees the same requests."""

import random
from collections.abc import Callable

from appliance.units import GIB
from tests.bench.slots.parts import ModelSpec, Request, Session, Trace, devices

_SEED = 20240607


def all_traces() -> list[Trace]:
    """In the order of the report."""
    return [make() for make in _MAKERS]


def model(name: str, gib: float, load_s: float, tp_size: int = 1) -> ModelSpec:
    """A model by its usual numbers."""
    return ModelSpec(name=name, need_bytes=int(gib * GIB), load_s=load_s, tp_size=tp_size)


def bursty() -> Trace:
    """Ten people; each chats with one model for minutes, rests, then takes another."""
    chance = random.Random(_SEED)
    models = tuple(model(f"chat-{number}", 18, 12 + 2 * number) for number in range(6))
    sessions = []
    horizon_s = 4 * 3600.0
    for _ in range(4):
        now = chance.expovariate(1 / 600)
        while now < horizon_s:
            length = chance.uniform(180, 900)
            sessions.append(
                Session(
                    model=chance.choices(models, [6, 4, 3, 2, 1, 1])[0].name,
                    start=now,
                    end=min(now + length, horizon_s),
                    service_s=chance.uniform(6, 25),
                    think_s=chance.uniform(10, 40),
                )
            )
            now += length + chance.expovariate(1 / 400)
    return Trace(
        name="bursty",
        about="4 people chat for minutes with one of 6 models, rest, take another; 2 devices",
        devices=devices(24, 24),
        models=models,
        sessions=tuple(sessions),
        horizon_s=horizon_s,
        idle_timeout_s=900.0,
    )


def zipf(skew: float, per_s: float) -> Trace:
    """Poisson arrivals; popularity by Zipf's law."""
    chance = random.Random(_SEED + int(skew * 10))
    models = tuple(
        model(f"zipf-{number}", 10 + 6 * (number % 3), 10 + 4 * (number % 5))
        for number in range(12)
    )
    weights = [1 / (rank + 1) ** skew for rank in range(len(models))]
    horizon_s = 2 * 3600.0
    requests, now = [], 0.0
    while (now := now + chance.expovariate(per_s)) < horizon_s:
        requests.append(
            Request(
                model=chance.choices(models, weights)[0].name,
                at=now,
                service_s=min(chance.lognormvariate(1.6, 0.8), 60),
            )
        )
    return Trace(
        name=f"zipf-{skew:g}",
        about=f"Poisson, {per_s:g} requests/s, 12 models by Zipf {skew:g}; 3 devices",
        devices=devices(24, 24, 40),
        models=models,
        requests=tuple(requests),
        horizon_s=horizon_s,
        idle_timeout_s=900.0,
    )


def alternation() -> Trace:
    """Two crowds, one device."""
    models = (model("left", 18, 10), model("right", 18, 10))
    sessions = tuple(
        Session(
            model=models[number % 2].name,
            start=3.0 * number,
            end=3600.0,
            service_s=4 + number % 3,
            think_s=3 + number % 5,
        )
        for number in range(8)
    )
    return Trace(
        name="a-b",
        about="8 clients, A-B-A-B without a pause, one device that holds one of both",
        devices=devices(24),
        models=models,
        sessions=sessions,
        horizon_s=3600.0,
    )


_MAKERS: tuple[Callable[[], Trace], ...] = (
    bursty,
    alternation,
    lambda: zipf(0.8, 0.2),
    lambda: zipf(1.2, 0.5),
)
