"""Events of the management API.

`GET /admin/v1/events` is a server-sent event stream. Each message has an increasing `id:` and a
JSON `data:` that decodes to `Event`. The first is a `Snapshot`, unless the client resumes with
`Last-Event-ID` (or `?since=`) and the server still holds all that came after. Entities arrive
whole: applying each event to the snapshot in order gives the later snapshot. Only an engine's
measured memory and its count of log lines change without an event; models carry the memory as well.
"""

from datetime import datetime

from appliance.protocol.base import Wire
from appliance.protocol.batches import BatchProgress
from appliance.protocol.devices import Device
from appliance.protocol.engines import Engine, EngineState
from appliance.protocol.models import Model
from appliance.protocol.pulls import Pull
from appliance.protocol.system import Alert, ServerInfo, Snapshot, Totals


class SnapshotEvent(Wire, frozen=True, kw_only=True, tag="snapshot", tag_field="type"):
    """Everything; replaces what the client knew."""

    snapshot: Snapshot


class ServerChanged(Wire, frozen=True, kw_only=True, tag="server", tag_field="type"):
    """The server's own facts changed (for example: it drains)."""

    server: ServerInfo


class DevicesSampled(Wire, frozen=True, kw_only=True, tag="devices", tag_field="type"):
    """New readings of all devices, about once a second while something changes."""

    devices: list[Device]
    totals: Totals


class ModelChanged(Wire, frozen=True, kw_only=True, tag="model", tag_field="type"):
    """A model was added or changed in any way."""

    model: Model


class ModelRemoved(Wire, frozen=True, kw_only=True, tag="model_removed", tag_field="type"):
    """A model is no longer known."""

    id: str


class EngineChanged(Wire, frozen=True, kw_only=True, tag="engine", tag_field="type"):
    """An engine was made or changed in any way."""

    engine: Engine


class EngineRemoved(Wire, frozen=True, kw_only=True, tag="engine_removed", tag_field="type"):
    """The record of an ended engine was dropped."""

    id: str


class Transition(Wire, frozen=True, kw_only=True, tag="transition", tag_field="type"):
    """An engine went from one state to another, and why."""

    at: datetime
    model: str
    engine_id: str
    before: EngineState
    after: EngineState
    reason: str
    duration_s: float
    """How long it was in the state that it left."""


class Swapped(Wire, frozen=True, kw_only=True, tag="swap", tag_field="type"):
    """Room was made: models were evicted and another one became ready.

    `duration_s` runs from the decision to evict until the new engine was ready.
    """

    at: datetime
    model: str
    evicted: list[str]
    duration_s: float


class BatchChanged(Wire, frozen=True, kw_only=True, tag="batch", tag_field="type"):
    """A batch was made, changed its state, or has gone on: for that at most once a second."""

    batch: BatchProgress


class PullChanged(Wire, frozen=True, kw_only=True, tag="pull", tag_field="type"):
    """A pull was asked for, changed its state, or has gone on: for that at most once a second."""

    pull: Pull


class AlertRaised(Wire, frozen=True, kw_only=True, tag="alert", tag_field="type"):
    """Something that its owner should look at."""

    alert: Alert


Event = (
    SnapshotEvent
    | ServerChanged
    | DevicesSampled
    | ModelChanged
    | ModelRemoved
    | EngineChanged
    | EngineRemoved
    | Transition
    | Swapped
    | BatchChanged
    | PullChanged
    | AlertRaised
)
