"""What the stub engine has on its device, and vLLM's sleep mode over it; standard library only.

The bytes are private memory of the process, so that whoever measures it sees them come and go.
The rules are vLLM's (v1/engine/core.py, v1/executor/abstract.py, device_allocator/cumem.py): a
pause comes before a sleep, a wake of what is not asleep does nothing, scheduling goes on when all
is back, and weights that were discarded are garbage until they are loaded again.
"""

import asyncio
import mmap
import os
import sys

WEIGHTS, KV_CACHE = "weights", "kv_cache"
TAGS = frozenset({WEIGHTS, KV_CACHE})
_PAGE, _PIECE = 4096, 64 * 1024
_GOOD, _GARBAGE = b"x", b"!"


class StubMemory:
    def __init__(self, behaviour: dict, *, has_sleep_mode: bool) -> None:
        self.fault = str(behaviour.get("sleep_fault", ""))
        self.sizes = {
            WEIGHTS: max(int(behaviour.get("weights_bytes", 0)), _PAGE),
            KV_CACHE: max(int(behaviour.get("kv_bytes", 0)), _PAGE),
        }
        self.has_sleep_mode = has_sleep_mode
        self.asleep: set[str] = set()
        self.level = 0
        self.backup: int | None = None
        self.running = asyncio.Event()
        """Scheduling is not paused."""
        self.running.set()
        self.parts = {tag: self.allocate(tag) for tag in TAGS}
        self.load_weights()

    def allocate(self, tag: str) -> mmap.mmap:
        """Private pages, all of them touched."""
        part = mmap.mmap(-1, self.sizes[tag], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for place in range(0, self.sizes[tag], _PAGE):
            part[place + 1] = 1
        return part

    def places(self) -> range:
        """Where the pieces of the weights begin: a copy of all would stay in the heap."""
        return range(0, self.sizes[WEIGHTS], _PIECE)

    def load_weights(self) -> None:
        """As from the checkpoint's files. Writing to what is not there kills the process."""
        if WEIGHTS in self.asleep:
            os.abort()
        is_garbage = self.level > 0 and self.fails("garbage")
        self.parts[WEIGHTS][:1] = _GARBAGE if is_garbage else _GOOD

    def fails(self, fault: str) -> bool:
        return self.fault == fault

    @property
    def is_sleeping(self) -> bool:
        return bool(self.asleep) or not self.running.is_set()

    def token(self) -> str:
        """What the model says, according to its weights."""
        return (_GOOD if self.parts[WEIGHTS][:1] == _GOOD else _GARBAGE).decode()

    def sleep(self, level: int) -> None:
        if WEIGHTS in self.asleep:
            print("WARNING Executor is already sleeping.", flush=True)
            return
        self.asleep, self.level = set(TAGS), level
        if not self.has_sleep_mode or self.fails("keeps"):
            return
        if level == 1:
            # In RAM, and not part of what the process has mapped, as a GPU's copy in RAM.
            if self.backup is None:
                self.backup = os.memfd_create("weights")
            for place in self.places():
                os.pwrite(self.backup, self.parts[WEIGHTS][place : place + _PIECE], place)
        for part in self.parts.values():
            part.close()

    def wake(self, tags: list[str] | None) -> bool:
        """Whether everything is back."""
        wanted = set(TAGS) if tags is None else set(tags) - {"scheduling"}
        if self.asleep and (tags is None or (wanted and wanted <= self.asleep)):
            self.restore(self.asleep & wanted)
        elif wanted:
            print(f"WARNING not asleep: {sorted(wanted)}", file=sys.stderr, flush=True)
        if not self.asleep:
            self.running.set()
        return not self.asleep

    def restore(self, tags: set[str]) -> None:
        self.asleep -= tags
        if not self.has_sleep_mode or self.fails("keeps"):
            return
        for tag in tags:
            self.parts[tag] = self.allocate(tag)
        if WEIGHTS in tags and self.level == 1 and self.backup is not None:
            for place in self.places():
                piece = os.pread(self.backup, _PIECE, place)
                self.parts[WEIGHTS][place : place + len(piece)] = piece
            if self.fails("garbage"):
                self.parts[WEIGHTS][:1] = _GARBAGE
