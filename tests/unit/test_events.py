import asyncio
from datetime import UTC, datetime

import pytest

from appliance.events import EventBus, Subscription, iterate
from appliance.protocol.devices import DeviceSource
from appliance.protocol.engines import Engine, EngineState
from appliance.protocol.events import (
    AlertRaised,
    DevicesSampled,
    EngineChanged,
    Event,
    ModelChanged,
    ModelRemoved,
    ServerChanged,
)
from appliance.protocol.models import Model, ModelSettings, Task
from appliance.protocol.system import Alert, ServerInfo, Totals

AT = datetime(2026, 1, 1, tzinfo=UTC)


def alert(number: int) -> Event:
    return AlertRaised(
        alert=Alert(id=f"alert_{number}", at=AT, severity="warning", message=f"{number}")
    )


def devices() -> Event:
    return DevicesSampled(devices=[], totals=Totals())


def server(draining: bool = False) -> Event:
    return ServerChanged(
        server=ServerInfo(
            host="h",
            version="1",
            pid=1,
            started_at=AT,
            listen="http://127.0.0.1:8000",
            device_source=DeviceSource.CPU,
            draining=draining,
        )
    )


def model(name: str, waiting: int = 0) -> Event:
    return ModelChanged(
        model=Model(
            id=name,
            settings=ModelSettings(path="/models/x", task=Task.GENERATE),
            state=EngineState.STOPPED,
            architecture="LlamaForCausalLM",
            context_length=1,
            weights_bytes=1,
            need_bytes=1,
            created_at=AT,
            waiting=waiting,
        )
    )


def engine(name: str, lines: int = 0) -> Event:
    return EngineChanged(
        engine=Engine(
            id=name,
            model="m",
            state=EngineState.READY,
            environment="cpu",
            vllm_version="0.32.0",
            created_at=AT,
            log_lines=lines,
        )
    )


async def queued(subscription: Subscription) -> list[Event]:
    """What is in the queue now."""
    subscription.close()
    return [item[1] async for item in iterate(subscription, 1.0) if item is not None]


def test_events_are_numbered_one_after_the_other() -> None:
    bus = EventBus()
    before = bus.seq
    for number in range(3):
        bus.publish(alert(number))
    assert bus.since(before) == [(before + 1 + number, alert(number)) for number in range(3)]
    assert bus.seq == before + 3


def test_numbers_of_a_later_bus_are_larger() -> None:
    first = EventBus()
    # A wall clock in milliseconds: they begin where no earlier server can have come.
    assert EventBus().seq >= first.seq > 1_700_000_000_000


def test_since_gives_what_came_later() -> None:
    bus = EventBus()
    bus.publish(alert(0))
    middle = bus.seq
    bus.publish(alert(1))
    assert bus.since(middle) == [(middle + 1, alert(1))]
    assert bus.since(bus.seq) == []


def test_since_knows_nothing_of_numbers_that_it_did_not_give() -> None:
    bus = EventBus()
    start = bus.seq
    assert bus.since(start - 1) is None
    assert bus.since(start + 1) is None
    bus.publish(alert(0))
    assert bus.since(start - 1) is None
    assert bus.since(start + 2) is None


def test_since_refuses_once_some_of_the_events_are_gone() -> None:
    bus = EventBus()
    start = bus.seq
    for number in range(1000):
        bus.publish(alert(number))
    assert len(bus.since(start) or []) == 1000
    bus.publish(alert(1000))
    assert bus.since(start) is None
    assert len(bus.since(start + 1) or []) == 1000


async def test_every_subscriber_gets_what_comes_after_it_subscribed() -> None:
    bus = EventBus()
    bus.publish(alert(0))
    first = bus.subscribe()
    bus.publish(alert(1))
    second = bus.subscribe()
    bus.publish(alert(2))
    assert await queued(first) == [alert(1), alert(2)]
    assert await queued(second) == [alert(2)]


async def test_unsubscribed_gets_nothing_more() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    bus.publish(alert(1))
    bus.unsubscribe(subscription)
    bus.publish(alert(2))
    assert await queued(subscription) == [alert(1)]


@pytest.mark.parametrize(
    ("published", "left"),
    [
        ([devices(), devices()], [devices()]),
        ([server(), alert(1), server(True)], [alert(1), server(True)]),
        ([model("a"), model("b"), model("a", 5)], [model("b"), model("a", 5)]),
        ([engine("e"), engine("f"), engine("e", 9)], [engine("f"), engine("e", 9)]),
        ([alert(1), alert(1)], [alert(1), alert(1)]),
        ([model("a"), ModelRemoved(id="a")], [model("a"), ModelRemoved(id="a")]),
    ],
)
async def test_newer_word_on_the_same_thing_replaces_the_queued_one(
    published: list[Event], left: list[Event]
) -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    for event in published:
        bus.publish(event)
    assert await queued(subscription) == left


async def test_replacing_event_has_its_own_number_so_numbers_rise() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    for event in (model("a"), alert(1), model("a", 1)):
        bus.publish(event)
    last = bus.seq
    assert await subscription.next(1.0) == (last - 1, alert(1))
    assert await subscription.next(1.0) == (last, model("a", 1))


async def test_slow_subscriber_is_closed_and_the_others_go_on() -> None:
    bus = EventBus()
    slow, quick = bus.subscribe(limit=3), bus.subscribe(limit=10)
    for number in range(5):
        bus.publish(alert(number))
    assert slow.is_closed
    assert not quick.is_closed
    assert await queued(slow) == [alert(0), alert(1), alert(2)]
    assert await queued(quick) == [alert(number) for number in range(5)]


async def test_gauges_alone_never_close_a_slow_subscriber() -> None:
    bus = EventBus()
    subscription = bus.subscribe(limit=2)
    for number in range(100):
        bus.publish(devices())
        bus.publish(model("a", number))
    assert not subscription.is_closed
    assert await queued(subscription) == [devices(), model("a", 99)]


async def test_closing_ends_the_iteration_after_what_is_queued() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    bus.publish(alert(1))
    bus.close()
    assert [item async for item in iterate(subscription, 1.0)] == [(bus.seq, alert(1))]


async def test_closing_wakes_a_subscriber_that_waits() -> None:
    bus = EventBus()
    subscription = bus.subscribe()

    async def collect() -> list[object]:
        return [item async for item in iterate(subscription, 60.0)]

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)
    bus.close()
    assert await asyncio.wait_for(task, 5.0) == []


async def test_subscription_to_a_closed_bus_ends_at_once() -> None:
    bus = EventBus()
    bus.close()
    assert [item async for item in iterate(bus.subscribe(), 1.0)] == []


async def test_event_wakes_a_subscriber_that_waits() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    task = asyncio.create_task(subscription.next(60.0))
    await asyncio.sleep(0)
    bus.publish(alert(7))
    assert await asyncio.wait_for(task, 5.0) == (bus.seq, alert(7))


async def test_silence_is_a_heartbeat() -> None:
    bus = EventBus()
    events = iterate(bus.subscribe(), 0.001)
    assert await anext(events) is None
    bus.publish(alert(1))
    assert await anext(events) == (bus.seq, alert(1))
    await events.aclose()  # type: ignore[attr-defined]


def test_listeners_hear_every_event_even_those_that_replace_others() -> None:
    bus = EventBus()
    heard: list[Event] = []
    bus.listen(heard.append)
    bus.publish(devices())
    bus.publish(devices())
    assert heard == [devices(), devices()]
