"""Snapshot and deltas give the later snapshot, whatever happened between."""

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.batches import (
    ENDED_SHOWN,
    Batch,
    BatchProgress,
    BatchStatus,
    without_old,
)
from appliance.protocol.devices import Device, DeviceKind, DeviceSource
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
    ServerChanged,
    SnapshotEvent,
    Swapped,
    Transition,
)
from appliance.protocol.models import Model, ModelSettings, Task
from appliance.protocol.system import Alert, ServerInfo, Snapshot, Totals
from tui.state.view import HAPPENINGS_KEPT, View, apply, view_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
IDS = st.sampled_from(["a", "b", "c"])
STATES = st.sampled_from(EngineState)
SERVER = ServerInfo(
    host="box", version="1", pid=1, started_at=AT, listen="", device_source=DeviceSource.CPU
)


def _model(name: str, state: EngineState, waiting: int) -> Model:
    return Model(
        id=name, settings=ModelSettings(path="/m", task=Task.GENERATE), state=state,
        architecture="X", context_length=1, weights_bytes=1, need_bytes=1, created_at=AT,
        waiting=waiting,
    )  # fmt: skip


def _engine(name: str, state: EngineState) -> Engine:
    return Engine(
        id=name, model="a", state=state, environment="cpu", vllm_version="1", created_at=AT
    )


def _device(index: int, used: int) -> Device:
    return Device(
        id=str(index), index=index, name="d", kind=DeviceKind.GPU, total_bytes=100,
        used_bytes=used, other_bytes=0, reserved_bytes=0, free_bytes=100 - used,
    )  # fmt: skip


def _batch(number: int, status: BatchStatus, done: int = 0) -> BatchProgress:
    batch = Batch(
        id=f"batch_{number}", endpoint="/v1/chat/completions", input_file_id="file-1",
        completion_window="24h", status=status, created_at=number // 2,
    )  # fmt: skip
    return BatchProgress(batch=batch, in_flight=done)


def _alert(name: str, message: str) -> Alert:
    return Alert(id=name, at=AT, severity="error", message=message)


EVENTS = st.one_of(
    st.builds(lambda *a: ModelChanged(model=_model(*a)), IDS, STATES, st.integers(0, 9)),
    st.builds(lambda i: ModelRemoved(id=i), IDS),
    st.builds(lambda *a: EngineChanged(engine=_engine(*a)), IDS, STATES),
    st.builds(lambda i: EngineRemoved(id=i), IDS),
    st.builds(
        lambda used: DevicesSampled(
            devices=[_device(i, u) for i, u in enumerate(used)],
            totals=Totals(tokens_per_s=float(sum(used))),
        ),
        st.lists(st.integers(0, 100), max_size=3),
    ),
    st.builds(
        lambda draining: ServerChanged(
            server=msgspec.structs.replace(SERVER, draining=draining)
        ),
        st.booleans(),
    ),
    st.builds(
        lambda *a: BatchChanged(batch=_batch(*a)),
        st.integers(0, 40), st.sampled_from(BatchStatus), st.integers(0, 9),
    ),
    st.builds(lambda *a: AlertRaised(alert=_alert(*a)), IDS, st.text(max_size=3)),
)  # fmt: skip


class Server:
    """Keeps the truth in the plainest way."""

    def __init__(self) -> None:
        self.seq = 0
        self.server = SERVER
        self.devices: list[Device] = []
        self.models: dict[str, Model] = {}
        self.engines: dict[str, Engine] = {}
        self.alerts: list[Alert] = []
        self.totals = Totals()
        self.batches: dict[str, BatchProgress] = {}

    def do(self, event: Event) -> None:
        self.seq += 1
        match event:
            case ModelChanged(model=model):
                self.models[model.id] = model
            case ModelRemoved(id=name):
                self.models.pop(name, None)
            case EngineChanged(engine=engine):
                self.engines[engine.id] = engine
            case EngineRemoved(id=name):
                self.engines.pop(name, None)
            case DevicesSampled(devices=devices, totals=totals):
                self.devices, self.totals = devices, totals
            case ServerChanged(server=server):
                self.server = server
            case BatchChanged(batch=batch):
                self.batches = without_old({**self.batches, batch.batch.id: batch})
            case AlertRaised(alert=alert):
                self.alerts = [a for a in self.alerts if a.id != alert.id] + [alert]

    def snapshot(self) -> Snapshot:
        return Snapshot(
            seq=self.seq,
            server=self.server,
            devices=self.devices,
            models=list(self.models.values()),
            engines=list(self.engines.values()),
            alerts=self.alerts,
            totals=self.totals,
            batches=list(self.batches.values()),
        )


@given(st.lists(EVENTS, max_size=30), st.integers(0, 30))
def test_snapshot_and_deltas_equal_the_later_snapshot(events: list[Event], joined: int) -> None:
    server = Server()
    view = View()
    for number, event in enumerate(events):
        if number == min(joined, len(events) - 1):
            view = apply(view, SnapshotEvent(snapshot=server.snapshot()), server.seq)
        server.do(event)
        if view.server is not None:
            # Over the wire and back, as it really comes.
            wire = msgspec.json.decode(msgspec.json.encode(event), type=Event)
            view = apply(view, wire, server.seq)
    if view.server is not None:
        assert view == view_of(server.snapshot())


def test_a_snapshot_forgets_what_is_gone_but_keeps_what_happened() -> None:
    view = apply(View(), ModelChanged(model=_model("a", EngineState.READY, 0)))
    view = apply(view, Swapped(at=AT, model="a", evicted=["b"], duration_s=3.0))
    view = apply(view, SnapshotEvent(snapshot=Server().snapshot()), 5)
    assert view.models == {}
    assert view.seq == 5
    assert len(view.happenings) == 1


def test_happenings_are_bounded() -> None:
    view = View()
    event = Transition(
        at=AT, model="a", engine_id="e", before=EngineState.LOADING, after=EngineState.READY,
        reason="", duration_s=1.0,
    )  # fmt: skip
    for _ in range(HAPPENINGS_KEPT + 10):
        view = apply(view, event)
    assert len(view.happenings) == HAPPENINGS_KEPT


def test_an_old_view_is_never_changed() -> None:
    before = apply(View(), ModelChanged(model=_model("a", EngineState.READY, 0)))
    apply(before, ModelRemoved(id="a"))
    assert "a" in before.models


def test_batches_that_are_over_are_forgotten_oldest_first_and_open_ones_never() -> None:
    view = apply(View(), BatchChanged(batch=_batch(0, BatchStatus.IN_PROGRESS)))
    for number in reversed(range(1, ENDED_SHOWN + 6)):
        view = apply(view, BatchChanged(batch=_batch(number, BatchStatus.COMPLETED)))
    assert len(view.batches) == ENDED_SHOWN + 1
    # Of those made in the same second the id decides, as text.
    assert list(view.batches)[:2] == ["batch_0", "batch_6"]


def test_a_snapshot_of_an_older_server_has_no_batches() -> None:
    wire = msgspec.json.decode(msgspec.json.encode(Server().snapshot()))
    del wire["batches"]
    assert view_of(msgspec.convert(wire, Snapshot)).batches == {}
