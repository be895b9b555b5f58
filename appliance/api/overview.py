"""The snapshot of everything, put together from its owners."""

import socket
from collections import OrderedDict
from collections.abc import Callable

from appliance.batch.news import BatchNews
from appliance.events import EventBus
from appliance.hub.pulls import Pulls
from appliance.protocol.devices import DeviceHealth
from appliance.protocol.events import AlertRaised, Event
from appliance.protocol.system import Alert, ServerInfo, Snapshot
from appliance.slots.board import SlotBoard

_ALERTS_KEPT = 50


class Overview:
    """Snapshots at an event number; keeps the newest alerts."""

    def __init__(
        self,
        board: SlotBoard,
        batches: BatchNews,
        pulls: Pulls,
        bus: EventBus,
        server_info: Callable[[], ServerInfo],
    ) -> None:
        self._batches = batches
        self._pulls = pulls
        self._board = board
        self._bus = bus
        self._server_info = server_info
        self._alerts: OrderedDict[str, Alert] = OrderedDict()
        bus.listen(self._on_event)

    def snapshot(self) -> Snapshot:
        """All that a UI shows, as of the last published event."""
        models = self._board.models()
        failing = {model.id for model in models if model.failure is not None}
        devices = self._board.devices()
        ailing = {each.id for each in devices if each.health is not DeviceHealth.HEALTHY}
        return Snapshot(
            seq=self._bus.seq,
            server=self._server_info(),
            devices=devices,
            models=models,
            engines=self._board.engines(),
            alerts=[
                alert
                for alert in self._alerts.values()
                if (alert.model is None or alert.model in failing)
                and (alert.device_id is None or alert.device_id in ailing)
            ],
            totals=self._board.totals(),
            batches=self._batches.told(),
            pulls=self._pulls.told(),
        )

    def _on_event(self, event: Event) -> None:
        if isinstance(event, AlertRaised):
            self._alerts.pop(event.alert.id, None)
            self._alerts[event.alert.id] = event.alert
            while len(self._alerts) > _ALERTS_KEPT:
                self._alerts.popitem(last=False)


def host_name() -> str:
    """Name of this machine."""
    return socket.gethostname()
