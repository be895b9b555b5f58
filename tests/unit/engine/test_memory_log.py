import pytest

from appliance.engine.memory_log import LoggedMemory, read_memory_log
from appliance.units import GIB

OLD = (
    "INFO 04-24 16:33:00 [gpu_model_runner.py:1316] Model loading took 14.9889 GiB and 3.65 seconds"
)
RANKS = [
    "(Worker_TP0 pid=1) INFO [gpu_model_runner.py:4879] Model loading took 7.4 GiB memory and 3 s",
    "(Worker_TP1 pid=2) INFO [gpu_model_runner.py:4879] Model loading took 7.5 GiB memory and 3 s",
]
GRAPHS = "INFO [gpu_model_runner.py:6582] Graph capturing finished in 20 secs, took 0.53 GiB"
CPU_TOKENS = (
    "(EngineCore pid=9) INFO [kv_cache_utils.py:2327] CPU KV cache size: 11,648 tokens,"
    " Maximum concurrency for 256 tokens per request: 45.50x"
)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], LoggedMemory()),
        ([OLD], LoggedMemory(weights_bytes=int(14.9889 * GIB))),
        (RANKS, LoggedMemory(weights_bytes=int(7.5 * GIB))),
        ([GRAPHS], LoggedMemory(graphs_bytes=int(0.53 * GIB))),
        (
            [OLD, GRAPHS, CPU_TOKENS],
            LoggedMemory(
                weights_bytes=int(14.9889 * GIB),
                graphs_bytes=int(0.53 * GIB),
                kv_cache_tokens=11_648,
            ),
        ),
        (["Model loading took 1.2.3 GiB", "KV cache size: , tokens"], LoggedMemory()),
        (["Loading weights took 7.00 seconds"], LoggedMemory()),
    ],
)
def test_figures_of_the_log(lines: list[str], expected: LoggedMemory) -> None:
    assert read_memory_log(lines) == expected
