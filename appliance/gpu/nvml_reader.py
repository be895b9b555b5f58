"""All NVIDIA GPUs as devices, whatever state their driver is in.

A GPU that was seen once stays listed: a driver that fails is not a machine without GPUs. NVML is
opened again, with pauses, until the fault is gone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.gpu import condition, pci
from appliance.gpu.condition import HEALTHY, Condition
from appliance.gpu.cpu import machine_memory
from appliance.gpu.nvml import (
    NO_ACTION,
    REBOOT_ACTIONS,
    Fault,
    Gpu,
    GpuSample,
    Listing,
    NvmlError,
    NvmlSession,
)
from appliance.gpu.reading import Reading
from appliance.gpu.xid import XidLog
from appliance.protocol.devices import DeviceCause, DeviceKind, DeviceSource, Link

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# GPUs and instances are listed anew this often: MIG instances come and go.
_LIST_EVERY_S = 5.0
# Names of GPUs that have no UUID to tell, followed by their index.
_NAMELESS = "gpu-"
# After one of these a new session may see the GPU again.
_REOPEN_FOR = frozenset({DeviceCause.GPU_LOST, DeviceCause.GPU_FAILS})


@dataclass(frozen=True)
class _Listed:
    """What stays the same between two listings."""

    listing: Listing = field(default_factory=lambda: Listing(()))
    links: dict[str, dict[str, Link]] = field(default_factory=dict)
    numa_nodes: dict[str, int | None] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """GPUs and instances."""
        return self.listing.gpus


class NvmlReader:
    """All NVIDIA GPUs and MIG instances of this machine. Calls may block."""

    source = DeviceSource.NVML

    def __init__(
        self,
        session: NvmlSession | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        list_every_s: float = _LIST_EVERY_S,
        sysfs: Path = pci.SYSFS,
    ) -> None:
        self._session = session
        self._clock = clock
        self._list_every_s = list_every_s
        self._sysfs = sysfs
        self._listed = _Listed()
        self._listed_at = float("-inf")
        self._last: dict[str, Reading] = {}
        self._seen: dict[str, Gpu] = {}
        """All that were ever listed, as they were then."""
        self._fault = HEALTHY
        self._pause_s = _FIRST_PAUSE_S
        self._try_at = float("-inf")
        self._xids = XidLog()

    @classmethod
    def open(cls, *, sysfs: Path = pci.SYSFS) -> "NvmlReader | None":
        """A reader, or None where there is no GPU to speak of.

        A driver that is broken gives a reader as well, whose devices are quarantined: only a
        missing library, a missing module without a GPU on the bus, and a driver that lists no
        GPU lead to None.
        """
        try:
            session = NvmlSession()
        except NvmlError as error:
            is_absent = error.fault is Fault.LIBRARY_MISSING or (
                error.fault is Fault.DRIVER_MISSING
                and (pci.is_module_loaded() or not pci.nvidia_gpus(sysfs))
            )
            return None if is_absent else cls(sysfs=sysfs)
        try:
            is_empty = session.listing() == Listing(())
        except NvmlError:
            is_empty = False
        if is_empty:
            session.close()
            return None
        return cls(session, sysfs=sysfs)

    def read(self) -> list[Reading]:
        """All GPUs that were ever seen, in the order of their index; never raises for a fault."""
        now = self._clock()
        if self._session is not None and self._session.is_library_replaced():
            self._close()
        if self._session is None and now >= self._try_at:
            self._open(now)
        elif self._session is not None and self._must_reopen() and now >= self._try_at:
            self._close()
            self._open(now)
        if self._session is not None:
            try:
                self._read_session(self._session, now)
            except NvmlError as error:
                self._lose(_of_driver(error), now)
        return self._readings()

    def close(self) -> None:
        """Release NVML."""
        if self._session is not None:
            self._close()

    def _close(self) -> None:
        assert self._session is not None
        self._session.close()
        self._session = None
        self._listed_at = float("-inf")

    def _open(self, now: float) -> None:
        try:
            self._session = NvmlSession()
        except NvmlError as error:
            self._fault = _of_driver(error)
            if error.fault is Fault.DRIVER_MISSING:
                # When it is loaded again, all GPUs have been reset.
                self._xids = XidLog()
        self._wait(now)

    def _lose(self, fault: Condition, now: float) -> None:
        """The whole driver fails."""
        self._fault = fault
        if self._session is not None:
            self._close()
        self._wait(now)

    def _wait(self, now: float) -> None:
        """The next try comes later than this one."""
        self._try_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    def _must_reopen(self) -> bool:
        return self._fault.is_quarantined or any(
            each.condition.cause in _REOPEN_FOR for each in self._last.values()
        )

    def _read_session(self, session: NvmlSession, now: float) -> None:
        self._list(session, now)
        gpus = self._listed.gpus
        answers: dict[str, GpuSample | NvmlError] = {}
        for gpu in gpus:
            try:
                answers[gpu.uuid] = session.sample(gpu)
            except NvmlError as error:
                answers[gpu.uuid] = error
        errors = [each for each in answers.values() if isinstance(each, NvmlError)]
        if errors and len(errors) == len(gpus) and all(_is_general(each) for each in errors):
            raise errors[0]
        for uuid, code in session.xids():
            self._xids.add(uuid, code, now)
        for gpu in gpus:
            answer = answers[gpu.uuid]
            if isinstance(answer, NvmlError):
                self._note_failure(gpu, answer)
            else:
                self._last[gpu.uuid] = self._reading(gpu, answer, now)
        self._note_missing()
        self._name_for_cuda()
        self._fault = HEALTHY if self._last else self._nothing_to_use()
        if not self._must_reopen():
            self._pause_s = _FIRST_PAUSE_S

    def _nothing_to_use(self) -> Condition:
        return condition.no_permission() if self._listed.listing.denied else condition.no_gpus()

    def _list(self, session: NvmlSession, now: float) -> None:
        if now - self._listed_at < self._list_every_s:
            return
        listing = session.listing()
        self._listed_at = now
        if not listing.gpus and listing.broken and all(_is_general(e) for _, e in listing.broken):
            raise listing.broken[0][1]
        self._forget_divided(listing.gpus)
        if [gpu.uuid for gpu in listing.gpus] != [gpu.uuid for gpu in self._listed.gpus]:
            self._listed = _Listed(
                listing,
                links=_links(session, listing.gpus),
                numa_nodes={gpu.uuid: self._numa_node(session, gpu) for gpu in listing.gpus},
            )
        self._listed = replace(self._listed, listing=listing)
        session.watch(listing.gpus)

    def _forget_divided(self, gpus: tuple[Gpu, ...]) -> None:
        """An instance that was removed is no loss, nor is a GPU that was divided."""
        wholes = {gpu.whole_uuid for gpu in gpus}
        for uuid in set(self._last) - {gpu.uuid for gpu in gpus}:
            if uuid.startswith(_NAMELESS) or self._seen[uuid].whole_uuid in wholes:
                self._last.pop(uuid)
        self._seen |= {gpu.uuid: gpu for gpu in gpus}

    def _numa_node(self, session: NvmlSession, gpu: Gpu) -> int | None:
        """NVML's may be one without processors, where the memory of a GPU is a node of its own."""
        node = pci.numa_node(gpu.bus, self._sysfs)
        return session.numa_node(gpu) if node is None else node

    def _reading(self, gpu: Gpu, sample: GpuSample, now: float) -> Reading:
        total, free = sample.total_bytes, sample.free_bytes
        if total is None or free is None:
            total, free = machine_memory()
        return Reading(
            id=gpu.uuid,
            index=self._index(gpu),
            name=gpu.name,
            kind=DeviceKind.GPU,
            total_bytes=total,
            available_bytes=free,
            used_by_pid=sample.used_by_pid,
            process_names={pid: name for pid in sample.used_by_pid if (name := process_name(pid))},
            utilization_ratio=sample.utilization_ratio,
            temperature_c=sample.temperature_c,
            power_w=sample.power_w,
            condition=self._condition(gpu, sample, now),
            links=self._listed.links.get(gpu.uuid, {}),
            numa_node=self._listed.numa_nodes.get(gpu.uuid),
            visible_as=gpu.uuid if gpu.is_instance else str(gpu.index),
            is_partition=gpu.is_instance,
        )

    def _condition(self, gpu: Gpu, sample: GpuSample, now: float) -> Condition:
        action = sample.recovery_action
        found = [
            self._xids.condition(
                gpu.whole_uuid, now, bus=gpu.bus, driver_says_fine=action == NO_ACTION
            )
        ]
        if gpu.has_mig and not gpu.is_instance:
            found.insert(0, condition.mig_empty())
        if action in REBOOT_ACTIONS:
            found.insert(0, condition.reboot_needed())
        elif action not in {None, NO_ACTION}:
            found.insert(0, condition.reset_needed(gpu.bus))
        if sample.has_remap_failed:
            found.insert(0, condition.rows_failed())
        if sample.uncorrected_errors or sample.is_remap_pending:
            found.append(
                condition.memory_errors(
                    sample.uncorrected_errors,
                    is_remap_pending=sample.is_remap_pending,
                    bus=gpu.bus,
                )
            )
        return condition.worst(found)

    def _note_failure(self, gpu: Gpu, error: NvmlError) -> None:
        if error.fault is Fault.LOST:
            # What comes back has been reset.
            self._xids.forget(gpu.whole_uuid)
        last = self._last.get(gpu.uuid) or _unseen(gpu.uuid, self._index(gpu), gpu.name)
        is_divided = gpu.has_mig and not gpu.is_instance
        # A GPU in MIG mode tells others than root nothing.
        why = condition.mig_empty() if is_divided else _of_gpu(error, gpu.bus)
        self._last[gpu.uuid] = _unread(replace(last, is_partition=gpu.is_instance), why)

    def _note_missing(self) -> None:
        """GPUs that are not listed any more, and those that never told who they are."""
        listing = self._listed.listing
        named = {uuid for uuid in self._last if not uuid.startswith(_NAMELESS)}
        for uuid in named - {gpu.uuid for gpu in listing.gpus}:
            self._xids.forget(self._seen[uuid].whole_uuid)
            why = condition.no_permission() if listing.denied else condition.gpu_lost()
            self._last[uuid] = _unread(self._last[uuid], why)
        known = {self._seen[uuid].index for uuid in named}
        for index, error in listing.broken:
            if index not in known:
                name = f"{_NAMELESS}{index}"
                self._last[name] = _unread(_unseen(name, index), _of_gpu(error, str(index)))

    def _name_for_cuda(self) -> None:
        """Indices mean the same to CUDA only while it sees every GPU, and sees it whole."""
        listing = self._listed.listing
        if any(gpu.has_mig for gpu in listing.gpus) or listing.denied or self._must_reopen():
            for uuid, reading in self._last.items():
                self._last[uuid] = replace(reading, visible_as=uuid)

    def _index(self, gpu: Gpu) -> int:
        """The one that it had, its own on the bus, or a free one."""
        if gpu.uuid in self._last:
            return self._last[gpu.uuid].index
        taken = {reading.index for reading in self._last.values()}
        index = gpu.index
        if gpu.is_instance:
            index = max((each.index for each in self._listed.gpus), default=0) + 1
        while index in taken:
            index += 1
        return index

    def _readings(self) -> list[Reading]:
        readings = sorted(self._last.values(), key=lambda reading: reading.index)
        if not self._fault.is_quarantined:
            return readings
        if readings:
            return [_unread(reading, self._fault) for reading in readings]
        return [
            _unread(_unseen(name, index), self._fault)
            for index, name in enumerate(
                [f"pci-{bus}" for bus in pci.nvidia_gpus(self._sysfs)] or ["nvidia"]
            )
        ]


def process_name(pid: int) -> str:
    """Of its program; empty where it cannot be seen, as from within a container."""
    try:
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _unseen(name: str, index: int, title: str = "NVIDIA GPU") -> Reading:
    """One that has never answered."""
    return Reading(
        id=name, index=index, name=title, kind=DeviceKind.GPU, total_bytes=0, available_bytes=0
    )


def _links(session: NvmlSession, gpus: tuple[Gpu, ...]) -> dict[str, dict[str, Link]]:
    return {
        one.uuid: {
            other.uuid: session.link(one, other)
            for other in gpus
            if other.whole_uuid != one.whole_uuid
        }
        for one in gpus
    }


def _unread(last: Reading, why: Condition) -> Reading:
    """Its last figures, without those that mean nothing when they are old."""
    return replace(last, condition=why, utilization_ratio=None, temperature_c=None, power_w=None)


def _is_general(error: NvmlError) -> bool:
    """Whether such an error of all GPUs is one of the driver."""
    return error.fault not in {Fault.LOST, Fault.RESET, Fault.NO_PERMISSION}


def _of_driver(error: NvmlError) -> Condition:
    match error.fault:
        case Fault.LIBRARY_MISSING | Fault.DRIVER_MISSING:
            return condition.driver_missing(str(error))
        case Fault.MISMATCH:
            return condition.driver_mismatch()
        case Fault.NO_PERMISSION:
            return condition.no_permission()
        case _:
            return condition.nvml_lost(str(error))


def _of_gpu(error: NvmlError, bus: str) -> Condition:
    match error.fault:
        case Fault.LOST:
            return condition.gpu_lost()
        case Fault.RESET:
            return condition.reset_needed(bus)
        case Fault.NO_PERMISSION:
            return condition.no_permission()
        case _:
            return condition.gpu_fails(str(error))
