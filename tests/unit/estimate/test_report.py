import pytest

from appliance.errors import InvalidRequestError
from appliance.estimate.estimator import Estimate
from appliance.estimate.report import Target, changed, report, targets_of
from appliance.protocol.devices import DeviceKind
from appliance.protocol.estimates import Basis, EstimateReport, EstimateRequest
from appliance.protocol.models import ModelSettings, Task
from appliance.units import GIB
from tests.unit.estimate.test_published_sizes import facts_of

LLAMA = facts_of("Llama-3.1-8B-Instruct")
SETTINGS = ModelSettings(path="/m", task=Task.GENERATE, context_length=2048)


def gpu(index: int, gib: int, free_gib: int | None = None) -> Target:
    return Target(
        id=f"gpu{index}",
        index=index,
        name=f"GPU {index}",
        kind=DeviceKind.GPU,
        total_bytes=gib * GIB,
        free_bytes=(gib if free_gib is None else free_gib) * GIB,
    )


def test_each_device_says_whether_the_model_fits() -> None:
    found = report(
        "m", LLAMA, SETTINGS, [gpu(0, 16), gpu(1, 24), gpu(2, 48, 10)], kind=DeviceKind.GPU
    )
    assert [(each.fits, each.fits_now) for each in found.devices] == [
        (False, False),
        (True, True),
        (True, False),
    ]
    small, middle, large = (each.largest_context for each in found.devices)
    assert small == 0 < middle <= large == LLAMA.max_context
    assert found.remedies == []
    assert found.rank.basis is Basis.ESTIMATED
    assert found.kv_bytes_per_token == 131_072
    assert (found.kv_requests, found.tp_sizes) == (4, [1, 2, 4, 8])


def test_remedies_fit_the_devices_that_there_are() -> None:
    two = report("m", LLAMA, SETTINGS, [gpu(0, 16), gpu(1, 16)], kind=DeviceKind.GPU)
    assert "splitting it over 2 devices" in [each.text for each in two.remedies]
    one = report("m", LLAMA, SETTINGS, [gpu(0, 16)], kind=DeviceKind.GPU)
    assert all(each.tp_size == 1 for each in one.remedies)
    assert all(each.need_bytes <= 16 * GIB for each in (*one.remedies, *two.remedies))
    assert one.remedies[0].command == "appliance set m --arg=--quantization=fp8"
    # The smaller of two devices has to hold a rank as well.
    uneven = report("m", LLAMA, SETTINGS, [gpu(0, 16), gpu(1, 4)], kind=DeviceKind.GPU)
    assert all(each.tp_size == 1 for each in uneven.remedies)


def test_size_that_is_asked_about_may_be_had_several_times() -> None:
    asked = targets_of(EstimateRequest(device_bytes=12 * GIB), [gpu(0, 80)])
    assert [each.total_bytes for each in asked] == [12 * GIB]
    found = report("m", LLAMA, SETTINGS, asked, kind=DeviceKind.CPU)
    assert found.device_kind is DeviceKind.GPU
    assert any(each.tp_size == 2 for each in found.remedies)


def test_device_is_named_by_index_or_id() -> None:
    there = [gpu(0, 16), gpu(1, 24)]
    assert targets_of(EstimateRequest(), there) == there
    for name in ("1", "gpu1"):
        assert targets_of(EstimateRequest(device=name), there) == [there[1]]
    with pytest.raises(InvalidRequestError, match="no device 7") as caught:
        targets_of(EstimateRequest(device="7"), there)
    assert "0 (gpu0), 1 (gpu1)" in caught.value.hint


def test_what_is_asked_about_replaces_the_settings() -> None:
    own = ModelSettings(path="/m", task=Task.GENERATE, memory_bytes=9, kv_cache_bytes=8)
    assert changed(own, EstimateRequest()) == own
    asked = changed(own, EstimateRequest(context_length=4096, tp_size=2))
    assert (asked.context_length, asked.tp_size) == (4096, 2)
    assert (asked.memory_bytes, asked.kv_cache_bytes) == (None, None)
    with pytest.raises(InvalidRequestError, match="tp_size"):
        changed(own, EstimateRequest(tp_size=0))


def test_ranks_want_a_device_each() -> None:
    two = ModelSettings(path="/m", task=Task.GENERATE, tp_size=2, context_length=2048)

    def ask(*gib: int) -> EstimateReport:
        targets = [gpu(index, size) for index, size in enumerate(gib)]
        return report("m", LLAMA, two, targets, kind=DeviceKind.GPU)

    assert ask(16, 16).fits
    assert not ask(24, 4).fits
    assert [each.fits for each in ask(24, 4).devices] == [True, False]
    assert not ask(80).fits
    assert ask().fits is None


def test_split_that_vllm_refuses_is_said() -> None:
    three = ModelSettings(path="/m", task=Task.GENERATE, tp_size=3, context_length=2048)
    found = report("m", LLAMA, three, [gpu(0, 80)], kind=DeviceKind.GPU)
    assert found.problem is not None
    assert "32 attention heads" in found.problem


def test_measured_memory_decides_what_fits() -> None:
    def correct(settings: ModelSettings, context: int, wanted: Estimate) -> Estimate:
        assert (settings, context) == (SETTINGS, 2048)
        return Estimate(context_bytes=15 * GIB, basis=Basis.MEASURED)

    found = report("m", LLAMA, SETTINGS, [gpu(0, 16)], kind=DeviceKind.GPU, correct=correct)
    assert found.rank.basis is Basis.MEASURED
    assert found.devices[0].fits
    assert found.devices[0].largest_context == 2048


def test_without_devices_the_need_is_said_all_the_same() -> None:
    found = report("m", LLAMA, SETTINGS, [], kind=DeviceKind.GPU)
    assert (found.devices, found.remedies) == ([], [])
    assert found.rank.total_bytes > 16 * GIB


def test_longer_context_than_the_model_has_is_cut() -> None:
    long = ModelSettings(path="/m", task=Task.GENERATE, context_length=10**9)
    found = report("m", LLAMA, long, [], kind=DeviceKind.GPU)
    assert found.context_length == found.max_context == LLAMA.max_context
