import pytest

from appliance.gpu.condition import HEALTHY, Condition
from appliance.gpu.xid import NOTED_FOR_S, XidLog
from appliance.protocol.devices import DeviceHealth


def after(*codes: int, now: float = 0.0, driver_says_fine: bool = False) -> Condition:
    log = XidLog()
    for code in codes:
        log.add("GPU-0", code, 0.0)
    return log.condition("GPU-0", now, bus="0000:01:00.0", driver_says_fine=driver_says_fine)


@pytest.mark.parametrize("code", [48, 64, 74, 79, 95, 119])
def test_errors_that_need_a_reset_quarantine_for_good(code: int) -> None:
    condition = after(code, now=NOTED_FOR_S * 10)
    assert condition.health is DeviceHealth.QUARANTINED
    assert f"Xid {code}" in condition.text
    assert "0000:01:00.0" in condition.remedy


@pytest.mark.parametrize("code", [13, 31, 43, 63, 94, 9999])
def test_other_errors_are_noted_for_a_while(code: int) -> None:
    assert after(code).health is DeviceHealth.DEGRADED
    assert after(code, now=NOTED_FOR_S) is HEALTHY


def test_the_end_of_a_killed_process_says_nothing() -> None:
    assert after(45) is HEALTHY


def test_a_grave_error_outweighs_later_ones() -> None:
    assert after(119, 31).is_quarantined


def test_a_driver_that_wants_no_reset_is_believed() -> None:
    assert after(95, driver_says_fine=True).health is DeviceHealth.DEGRADED
    assert after(95, now=NOTED_FOR_S, driver_says_fine=True) is HEALTHY


def test_a_reset_gpu_starts_anew() -> None:
    log = XidLog()
    log.add("GPU-0", 79, 0.0)
    log.forget("GPU-0")
    assert log.condition("GPU-0", 1.0, bus="", driver_says_fine=False) is HEALTHY
