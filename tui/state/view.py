"""What the server told: `apply(view, event)` gives the next picture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from appliance.protocol.batches import BatchProgress, without_old
from appliance.protocol.devices import Device, DeviceHealth
from appliance.protocol.engines import Engine, EngineState
from appliance.protocol.events import (
    AlertRaised,
    BatchChanged,
    DevicesSampled,
    EngineChanged,
    EngineRemoved,
    Event,
    ModelChanged,
    ModelRemoved,
    PullChanged,
    ServerChanged,
    SnapshotEvent,
    Swapped,
    Transition,
)
from appliance.protocol.models import Model
from appliance.protocol.system import Alert, ServerInfo, Snapshot, Totals

HAPPENINGS_KEPT = 100
ALERTS_KEPT = 50

Happening = Transition | Swapped


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything known about the server. `server` is None until the first snapshot."""

    seq: int | None = None
    server: ServerInfo | None = None
    devices: tuple[Device, ...] = ()
    models: Mapping[str, Model] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    batches: Mapping[str, BatchProgress] = field(default_factory=dict)
    """The oldest first."""
    alerts: tuple[Alert, ...] = ()
    totals: Totals = field(default_factory=Totals)
    happenings: tuple[Happening, ...] = ()
    """Newest last; not part of a snapshot, collected while connected."""


def apply(view: View, event: Event, seq: int | None = None) -> View:
    """The picture after `event`, which had number `seq` in the stream."""
    changed = _CHANGES[type(event)](view, event)
    return changed if seq is None else replace(changed, seq=seq)


def view_of(snapshot: Snapshot) -> View:
    """The picture of a snapshot."""
    return View(
        seq=snapshot.seq,
        server=snapshot.server,
        devices=tuple(snapshot.devices),
        models={model.id: model for model in snapshot.models},
        engines={engine.id: engine for engine in snapshot.engines},
        batches={each.batch.id: each for each in snapshot.batches},
        alerts=tuple(snapshot.alerts[-ALERTS_KEPT:]),
        totals=snapshot.totals,
    )


def was_stopped(engine: Engine | None) -> bool:
    """True for an engine that was ended on purpose, or is being ended."""
    return (
        engine is not None
        and engine.failure is None
        and engine.state in {EngineState.STOPPED, EngineState.STOPPING}
    )


def _snapshot(view: View, event: SnapshotEvent) -> View:
    return replace(view_of(event.snapshot), happenings=view.happenings)


def _server(view: View, event: ServerChanged) -> View:
    return replace(view, server=event.server)


def _devices(view: View, event: DevicesSampled) -> View:
    healthy = {each.id for each in event.devices if each.health is DeviceHealth.HEALTHY}
    return replace(
        view,
        devices=tuple(event.devices),
        totals=event.totals,
        alerts=tuple(alert for alert in view.alerts if alert.device_id not in healthy),
    )


def _model(view: View, event: ModelChanged) -> View:
    return replace(view, models={**view.models, event.model.id: event.model})


def _model_removed(view: View, event: ModelRemoved) -> View:
    return replace(view, models={k: v for k, v in view.models.items() if k != event.id})


def _engine(view: View, event: EngineChanged) -> View:
    return replace(view, engines={**view.engines, event.engine.id: event.engine})


def _engine_removed(view: View, event: EngineRemoved) -> View:
    return replace(view, engines={k: v for k, v in view.engines.items() if k != event.id})


def _happening(view: View, event: Happening) -> View:
    return replace(view, happenings=(*view.happenings, event)[-HAPPENINGS_KEPT:])


def _batch(view: View, event: BatchChanged) -> View:
    batches = {**view.batches, event.batch.batch.id: event.batch}
    return replace(view, batches=without_old(batches))


def _not_shown(view: View, _: PullChanged) -> View:
    return view


def _alert(view: View, event: AlertRaised) -> View:
    others = [alert for alert in view.alerts if alert.id != event.alert.id]
    return replace(view, alerts=(*others, event.alert)[-ALERTS_KEPT:])


_CHANGES: dict[type, Callable[[View, Any], View]] = {
    SnapshotEvent: _snapshot,
    ServerChanged: _server,
    DevicesSampled: _devices,
    ModelChanged: _model,
    ModelRemoved: _model_removed,
    EngineChanged: _engine,
    EngineRemoved: _engine_removed,
    Transition: _happening,
    Swapped: _happening,
    BatchChanged: _batch,
    PullChanged: _not_shown,
    AlertRaised: _alert,
}
