"""The event stream of a server, collected while a test goes on."""

import threading
from typing import Any

import httpx

from tests.support.server import ServerProcess
from tests.support.wait import wait_until


class Recorder:
    """Collects the event stream in a thread."""

    def __init__(self, server: ServerProcess) -> None:
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, args=(server,), daemon=True)
        self._thread.start()
        wait_until(lambda: self.events)

    def _read(self, server: ServerProcess) -> None:
        try:
            for event in server.events():
                self.events.append(event)
        except httpx.HTTPError:
            return

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]
