import subprocess
import sys

# Cycles that survive two young collections, after many objects that stay.
PROGRAM = """
import gc
from appliance.server.run import _settle_collector
stay = [[number] for number in range(300_000)]
_settle_collector()
before = gc.get_stats()[2]["collections"]
ring = [None] * 500
for number in range(600_000):
    cycle = []
    cycle.append(cycle)
    ring[number % len(ring)] = cycle
print(gc.get_stats()[2]["collections"] - before)
"""


def test_garbage_is_collected_though_much_is_frozen() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) >= 12
