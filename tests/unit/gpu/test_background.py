import threading

import pytest

from appliance.errors import DeviceError
from appliance.gpu.background import BackgroundReader, DriverHangsError
from appliance.gpu.cpu import CpuReader
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceCause, DeviceSource
from tests.support.wait import wait_until_async

SOON_S = 0.05


class SlowReader(CpuReader):
    """Answers once it is let go."""

    source = DeviceSource.NVML

    def __init__(self) -> None:
        super().__init__(None)
        self.go = threading.Event()
        self.reads = 0
        self.is_closed = False

    def read(self) -> list[Reading]:
        self.reads += 1
        self.go.wait(10)
        return super().read()

    def close(self) -> None:
        self.is_closed = True


async def test_a_driver_that_hangs_is_named_and_asked_only_once() -> None:
    slow = SlowReader()
    reader = BackgroundReader(slow, limit_s=SOON_S)
    for _ in range(3):
        with pytest.raises(DriverHangsError) as caught:
            await reader.read()
        assert caught.value.condition.cause is DeviceCause.NVML_HANGS
    assert slow.reads == 1
    slow.go.set()
    await reader.close()
    assert slow.is_closed


async def test_an_answer_that_comes_late_ends_the_fault() -> None:
    slow = SlowReader()
    reader = BackgroundReader(slow, limit_s=SOON_S)
    with pytest.raises(DriverHangsError):
        await reader.read()
    slow.go.set()

    async def answers() -> bool:
        try:
            return len(await reader.read()) == 1
        except DriverHangsError:
            return False

    assert await wait_until_async(answers)
    await reader.close()


@pytest.mark.parametrize("error", [DeviceError("gone"), ValueError("gone")])
async def test_failures_of_the_source_are_device_errors(error: Exception) -> None:
    class Failing(CpuReader):
        def read(self) -> list[Reading]:
            raise error

    reader = BackgroundReader(Failing(None), limit_s=5.0)
    with pytest.raises(DeviceError, match="gone"):
        await reader.read()
    await reader.close()
