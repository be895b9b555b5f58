"""Weights are read into memory while a device is being freed, or an engine imports vLLM."""

import asyncio
import threading
from pathlib import Path

from appliance.engine.prefetch import prefetch


class ReadAhead:
    """Owner of the threads that read, one for each model at most."""

    def __init__(self) -> None:
        self._reading: dict[str, tuple[threading.Event, asyncio.Task[int]]] = {}

    def begin(self, model: str, directory: Path) -> None:
        """Read the model's weights, unless that is going on already."""
        if model in self._reading:
            return
        stop = threading.Event()
        task = asyncio.create_task(asyncio.to_thread(prefetch, directory, stop))
        self._reading[model] = (stop, task)
        task.add_done_callback(lambda _: self._reading.pop(model, None))

    def end(self, model: str) -> None:
        """The engine has them, or is gone."""
        if model in self._reading:
            self._reading[model][0].set()

    async def stop(self) -> None:
        """End all of it."""
        tasks = [task for _, task in self._reading.values()]
        for model in list(self._reading):
            self.end(model)
        await asyncio.gather(*tasks, return_exceptions=True)
