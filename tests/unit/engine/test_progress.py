from datetime import UTC, datetime

import pytest

from appliance.engine.progress import LoadTracker
from appliance.protocol.engines import LoadPhase
from appliance.store.models import LoadRecord

# A start of vLLM 0.32 on a CPU: seconds since the start, and the line.
API = "(APIServer pid=4269) INFO 11-21 08:57:17"
CORE = "(EngineCore pid=4287) INFO 11-21 08:57:34"
CPU_LOG = [
    (6.0, "Triton is installed, but doesn't include CPU backend. Disabling Triton."),
    (6.5, f"{API} [api_utils.py:347]   █▄█▀ █     █     █     █  model   /models/x"),
    (6.6, f"{API} [api_utils.py:286] non-default args: {{'uds': '/run/x.sock'}}"),
    (
        6.7,
        "(APIServer pid=4269) WARNING 11-21 08:57:17 [system_utils.py:255] Found ulimit of 20000"
        " and failed to automatically increase with error current limit exceeds maximum limit.",
    ),
    (12.0, f"{API} [model.py:733] Resolved architecture: LlamaForCausalLM"),
    (12.1, f"{API} [model.py:2152] Using max model len 2048"),
    (16.0, f"{CORE} [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='x'"),
    (17.0, f"{CORE} [cpu_model_runner.py:68] Starting to load model /models/x..."),
    (17.1, f"{CORE} [base_loader.py:82] Initializing model took 0.152436 seconds"),
    (17.2, "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]"),
    (17.6, "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00,  2.3it/s]"),
    (17.7, f"{CORE} [default_loader.py:501] Loading weights took 0.44 seconds"),
    (18.0, f"{CORE} [cpu_worker.py:260] Explicitly set (0.25/8.46) GiB for KV cache on node 0."),
    (18.1, f"{CORE} [kv_cache_utils.py:2327] CPU KV cache size: 11,648 tokens, Maximum"),
    (19.0, f"{CORE} [core.py:402] init engine (profile, create kv cache, warmup model) took 0 s"),
    (19.1, f"{API} [entry.py:136] Supported tasks: ['generate']"),
    (20.0, f"{API} [entry.py:140] Starting vLLM server on unix:/run/x.sock"),
    (20.1, f"{API} [launcher.py:195] Route: /health, Methods: GET"),
]


def load(load_s: float, phases: dict[str, float]) -> LoadRecord:
    return LoadRecord(
        model="m",
        fingerprint="f",
        load_s=load_s,
        phases=phases,
        memory_bytes=1,
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


EARLIER = [load(20.0, {"importing": 10.0, "weights": 8.0, "warming up": 2.0})]


def test_phases_of_a_real_log_come_in_order() -> None:
    tracker = LoadTracker(0.0, [])
    seen = [LoadPhase.IMPORTING]
    for now, line in CPU_LOG:
        tracker.feed(line, now)
        phase = tracker.progress(now).phase
        if phase is not seen[-1]:
            seen.append(phase)
    assert seen == [
        LoadPhase.IMPORTING,
        LoadPhase.CONFIGURING,
        LoadPhase.WEIGHTS,
        LoadPhase.KV_CACHE,
        LoadPhase.WARMING_UP,
    ]


@pytest.mark.parametrize("earlier", [[], EARLIER])
def test_ratio_of_a_real_log_never_falls_and_stays_below_one(earlier: list[LoadRecord]) -> None:
    tracker = LoadTracker(0.0, earlier)
    ratios = []
    lines = list(CPU_LOG)
    for tenth in range(300):
        now = tenth / 10
        while lines and lines[0][0] <= now:
            tracker.feed(lines.pop(0)[1], now)
        ratios.append(tracker.progress(now).ratio)
    assert ratios == sorted(ratios, key=lambda ratio: ratio or 0.0)
    assert ratios[0] == 0.0
    assert 0.9 < (ratios[-1] or 0.0) < 1.0


def test_lines_that_say_nothing_new_change_nothing() -> None:
    tracker = LoadTracker(0.0, [])
    assert tracker.feed(f"{API} [api_utils.py:286] non-default args: {{}}", 1.0)
    before = tracker.progress(2.0)
    for line in ("", "Triton is not installed.", f"{API} Resolved architecture: Llama"):
        assert not tracker.feed(line, 2.0)
    assert tracker.progress(2.0) == before


def test_line_of_an_earlier_phase_does_not_lead_back() -> None:
    tracker = LoadTracker(0.0, [])
    tracker.feed(f"{CORE} CPU KV cache size: 11,648 tokens", 5.0)
    for line in (
        f"{CORE} Starting to load model /models/draft...",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]",
    ):
        assert not tracker.feed(line, 6.0)
    assert tracker.progress(6.0).phase is LoadPhase.KV_CACHE
    assert tracker.progress(6.0).detail == ""


def test_shards_are_counted() -> None:
    tracker = LoadTracker(0.0, EARLIER)
    assert tracker.feed(
        "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03,  1.0s/it]", 10.0
    )
    progress = tracker.progress(10.0)
    assert progress.phase is LoadPhase.WEIGHTS
    assert progress.detail == "1/4"
    # Importing was half of the earlier load, weights 8 of its 20 seconds.
    assert progress.ratio == pytest.approx(0.5 + 0.4 * 0.25)


def test_progress_bar_alone_begins_the_phase() -> None:
    tracker = LoadTracker(0.0, [])
    tracker.feed("(Worker_TP0 pid=9) Loading safetensors: 10% Completed | 3/30 [00:01<00:03]", 5.0)
    assert tracker.progress(5.0).phase is LoadPhase.WEIGHTS
    assert tracker.progress(5.0).detail == "3/30"


def test_graphs_are_counted() -> None:
    tracker = LoadTracker(0.0, [])
    line = (
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  48%|████▊     | 32/67 [00:01<00]"
    )
    assert tracker.feed(line, 5.0)
    progress = tracker.progress(5.0)
    assert progress.phase is LoadPhase.GRAPHS
    assert progress.detail == "32/67"


def test_detail_belongs_to_its_phase() -> None:
    tracker = LoadTracker(0.0, [])
    tracker.feed("Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00]", 5.0)
    tracker.feed(f"{CORE} CPU KV cache size: 11,648 tokens", 6.0)
    assert tracker.progress(6.0).detail == ""


def test_first_load_has_no_eta() -> None:
    progress = LoadTracker(0.0, []).progress(3.0)
    assert progress.eta_s is None
    assert progress.eta_loads == 0
    assert progress.elapsed_s == 3.0


def test_eta_comes_from_the_median_of_earlier_loads() -> None:
    phases = {"importing": 10.0, "weights": 10.0}
    earlier = [load(10.0, phases), load(20.0, phases), load(90.0, phases)]
    tracker = LoadTracker(100.0, earlier)
    assert tracker.progress(100.0).eta_s == 20.0
    assert tracker.progress(100.0).eta_loads == 3
    tracker.feed(f"{CORE} Starting to load model /models/x...", 110.0)
    assert tracker.progress(110.0).eta_s == 10.0
    assert tracker.progress(115.0).eta_s == 5.0


def test_load_that_takes_longer_than_ever_waits_within_its_phase() -> None:
    tracker = LoadTracker(0.0, EARLIER)
    progress = tracker.progress(1000.0)
    assert progress.phase is LoadPhase.IMPORTING
    assert progress.ratio == pytest.approx(0.5 * 0.95)
    assert progress.eta_s is not None
    assert progress.eta_s > 0


def test_durations_of_the_phases_add_up_to_the_load() -> None:
    tracker = LoadTracker(0.0, [])
    for now, line in CPU_LOG:
        tracker.feed(line, now)
    phases = tracker.finish(21.0)
    assert sum(phases.values()) == pytest.approx(21.0)
    assert phases["importing"] == pytest.approx(6.6)
    assert phases["weights"] == pytest.approx(1.0)
    assert set(phases) <= {phase.value for phase in LoadPhase}


def test_loads_without_durations_are_divided_like_unknown_ones() -> None:
    ratios = []
    for earlier in ([load(30.0, {})], []):
        tracker = LoadTracker(0.0, earlier)
        tracker.feed(f"{CORE} Starting to load model /models/x...", 1.0)
        ratios.append(tracker.progress(1.0).ratio)
    assert ratios[0] == ratios[1] == 0.75
