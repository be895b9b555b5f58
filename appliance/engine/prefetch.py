"""Reads the weights of a model that is about to be loaded, so that the load finds them in memory.

That gains the time that the disk takes, if it happens while something else is waited for: the
device is being freed, or the engine imports vLLM.
"""

import mmap
import threading
from pathlib import Path

from appliance.errors import DeviceError
from appliance.gpu.cpu import CpuReader
from appliance.units import MIB

_CHUNK_BYTES = 8 * MIB
# The rest is for the engine itself, and for what others read.
_MOST_OF_MEMORY = 0.5


def prefetch(directory: Path, stop: threading.Event, *, available_bytes: int | None = None) -> int:
    """Read the weights until `stop` is set; returns the bytes read (blocks: run it in a thread).

    Reads nothing where they would push out too much else: more than half of the available memory.
    A file that cannot be read is the engine's to complain about.
    """
    room = _available_bytes() if available_bytes is None else available_bytes
    try:
        files = sorted(directory.glob("*.safetensors"))
        if sum(file.stat().st_size for file in files) > room * _MOST_OF_MEMORY:
            return 0
        return sum(_read(file, stop) for file in files)
    except OSError:
        return 0


def _read(file: Path, stop: threading.Event) -> int:
    total = 0
    # Not a bytearray: malloc takes its memory from an arena of the calling thread and keeps it
    # there, once for each thread of the pool (mallopt(3), M_MMAP_THRESHOLD).
    with mmap.mmap(-1, _CHUNK_BYTES) as buffer, file.open("rb", buffering=0) as source:
        while not stop.is_set() and (count := source.readinto(buffer)):
            total += count
    return total


def _available_bytes() -> int:
    try:
        return CpuReader(None).read()[0].available_bytes or 0
    except DeviceError:
        return 0
