"""Logs of ten million lines: windows, tails and filtered tails, and the memory that they take.

Lines go through the pump as those of an engine do. For each call: median and worst milliseconds,
and the worst of processor time alone, which other programs of the machine do not lengthen.
Run by `scripts/bench logs [--lines N] [--json]`; the last line of `--json` is one object.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from appliance.engine.log_search import LogFilter
from appliance.engine.logs import EngineLog, start_pump
from appliance.protocol.engines import LogLevel, LogMatches
from appliance.units import GIB, MIB

T = TypeVar("T")

CALLS = 200
RARE = "Traceback of a rare day"
BLOCK = 1000
TEMPLATES = (
    "(EngineCore_DP0 pid=4287) INFO 11-21 08:57:34 [loggers.py:248] Engine 000: Avg prompt"
    " throughput: 512.3 tokens/s, Avg generation throughput: 98.7 tokens/s, Running: 3 reqs, %d",
    '(APIServer pid=4120) INFO:     unix:0 - "POST /v1/chat/completions HTTP/1.1" 200 OK %d',
    "(APIServer pid=4120) INFO 11-21 08:57:35 [serving_chat.py:91] request chatcmpl-%d finished",
    "(EngineCore_DP0 pid=4287) DEBUG 11-21 08:57:35 [core.py:411] step %d took 12 ms",
)


def block(first: int) -> bytes:
    """A thousand lines; one of them is a warning, one in a million is rare."""
    lines = [TEMPLATES[number % 4] % number for number in range(first, first + BLOCK)]
    lines[500] = f"(EngineCore_DP0 pid=4287) WARNING 11-21 08:57:36 [x.py:1] slow step {first}"
    if first % 1_000_000 == 1:
        lines[700] = f"(EngineCore_DP0 pid=4287) ERROR 11-21 08:57:36 [x.py:2] {RARE} {first}"
    return ("\n".join(lines) + "\n").encode()


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def pumped(log: EngineLog, count: int) -> tuple[float, int]:
    """Seconds, and lines that the event loop was told of."""
    heard = 0

    def on_lines(first_line: int, lines: list[str]) -> None:
        nonlocal heard
        heard += len(lines)
        log.deliver(first_line, lines)

    read_end, write_end = os.pipe()

    def write() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            for first in range(1, count + 1, BLOCK):
                pipe.write(block(first))

    started = time.perf_counter()
    writer = threading.Thread(target=write)
    pump = start_pump(read_end, log, asyncio.get_running_loop(), on_lines)
    writer.start()
    await asyncio.to_thread(pump.join)
    return time.perf_counter() - started, heard


class Stopwatch:
    """Times of calls in milliseconds."""

    def __init__(self) -> None:
        self._elapsed: list[float] = []
        self._busy: list[float] = []

    def call(self, function: Callable[[], T]) -> T:
        started, busy = time.perf_counter(), time.thread_time()
        result = function()
        self._elapsed.append((time.perf_counter() - started) * 1000)
        self._busy.append((time.thread_time() - busy) * 1000)
        return result

    def report(self) -> dict[str, float]:
        return {
            "median_ms": round(statistics.median(self._elapsed), 2),
            "worst_ms": round(max(self._elapsed), 2),
            "worst_busy_ms": round(max(self._busy), 2),
            "calls": len(self._elapsed),
            "whole_ms": round(sum(self._elapsed)),
        }


def timed(call: Callable[[], object]) -> dict[str, float]:
    watch = Stopwatch()
    for _ in range(CALLS):
        watch.call(call)
    return watch.report()


def exhausted(log: EngineLog, keep: LogFilter, count: int) -> dict[str, float]:
    """All calls of a client that wants `count` matches, from the newest on."""
    watch = Stopwatch()
    found = 0
    before: int | None = None
    is_complete = False
    while found < count and not is_complete:
        search = partial(log.search_back, keep, count - found, before)
        page: LogMatches = watch.call(search)
        found += len(page.matches)
        before, is_complete = page.scanned_from, page.is_complete
    return {**watch.report(), "matches": found}


def measure(folder: Path, count: int, limit: int) -> dict[str, object]:
    log = EngineLog(folder / "engine.log", "eng_1", "m", limit_bytes=limit)
    before = resident_bytes()
    seconds, heard = asyncio.run(pumped(log, count))
    after = resident_bytes()
    assert log.line_count == count
    dice = random.Random(1)
    calls = {
        "window of 200, anywhere": timed(lambda: log.window(dice.randint(1, count), 200)),
        "last 200": timed(lambda: log.last(200)),
        "last 200 of a frequent word": timed(lambda: log.search_back(LogFilter("throughput"), 200)),
        "last 200 warnings": exhausted(log, LogFilter(level=LogLevel.WARNING), 200),
        "last 200 errors": exhausted(log, LogFilter(level=LogLevel.ERROR), 200),
        "last 200 of a rare word": exhausted(log, LogFilter(RARE), 200),
        "last 200 of an absent word": exhausted(log, LogFilter("no such words"), 200),
    }
    return {
        "limit_mib": limit // MIB,
        "kept_mib": sum(file.stat().st_size for file in folder.iterdir()) // MIB,
        "lines_per_s": round(count / seconds),
        "heard_ratio": round(heard / count, 3),
        "index_kib": log.index_bytes // 1024,
        "memory_growth_mib": round((after - before) / MIB, 1),
        "memory_growth_after_calls_mib": round((resident_bytes() - before) / MIB, 1),
        "calls": calls,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="logs of ten million lines")
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    reports = {}
    for name, limit in (("default limit", 256 * MIB), ("all kept", 16 * GIB)):
        with tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache") as folder:
            report = measure(Path(folder), args.lines, limit)
        reports[name] = report
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in report.items() if k != "calls"))
        calls = report["calls"]
        assert isinstance(calls, dict)
        for call, row in calls.items():
            print(
                f"  {call:<30}{row['median_ms']:>8} ms{row['worst_ms']:>8} ms worst"
                f"{row['worst_busy_ms']:>8} ms busy, {row['whole_ms']} ms in {row['calls']} calls"
            )
    if args.json:
        print(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
