"""What an engine took, kept for the next estimate of its configuration; and that estimate."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from appliance.engine.logs import EngineLog
from appliance.engine.memory_log import LoggedMemory, read_memory_log
from appliance.errors import InvalidRequestError
from appliance.estimate.estimator import Estimate, estimate
from appliance.estimate.measured import Measurement, corrected
from appliance.estimate.report import Target, changed, report, targets_of
from appliance.protocol.devices import DeviceKind
from appliance.protocol.estimates import EstimateReport, EstimateRequest
from appliance.protocol.models import ModelSettings
from appliance.registry.registry import KnownModel
from appliance.slots.history import LoadHistory, fingerprint
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.slot import Running
from appliance.store.models import LoadRecord

# The configuration of a model, whatever environment its engine runs in.
_ANY_ENVIRONMENT = ""
# A load says what it took within its first lines.
_LOG_LINES = 5000


async def measure_load(running: Running, monitor: DeviceMonitor) -> LoadRecord:
    """An engine that has just become ready."""
    supervisor = running.supervisor
    spec = supervisor.spec
    memory_bytes = await asyncio.to_thread(supervisor.measure)
    pids = await asyncio.to_thread(supervisor.pids)
    logged = await asyncio.to_thread(_logged, supervisor.log)
    on_devices = await monitor.used_by(running, pids)

    def key(environment: str) -> str:
        return fingerprint(spec.model, spec.settings, environment, spec.context_length)

    return LoadRecord(
        model=supervisor.model,
        fingerprint=key(supervisor.environment.name),
        load_s=supervisor.load_s or 0.0,
        phases=supervisor.phases,
        memory_bytes=memory_bytes,
        at=datetime.now(UTC),
        configuration=key(_ANY_ENVIRONMENT),
        rank_bytes=fullest_rank_bytes(
            spec.device_kind,
            ram_bytes=memory_bytes,
            ranks=len(supervisor.placement.shares),
            on_devices=on_devices,
        ),
        kv_cache_bytes=spec.kv_cache_bytes,
        weights_bytes=logged.weights_bytes,
        graphs_bytes=logged.graphs_bytes,
    )


def fullest_rank_bytes(
    kind: DeviceKind,
    *,
    ram_bytes: int,
    ranks: int,
    on_devices: Sequence[int],
) -> int:
    """Memory of one rank with its whole KV cache; 0 if it could not be measured.

    In RAM a page counts once it is touched; CPU engines clear their KV cache before they are ready
    (vLLM 0.32). One that does not seems to hold too little, and is not believed.
    """
    if kind is DeviceKind.GPU:
        return max(on_devices, default=0)
    return ram_bytes // ranks


def estimate_of(known: KnownModel, history: LoadHistory, monitor: DeviceMonitor) -> Estimate:
    """Memory per rank, by what earlier engines of this configuration took; facts are known."""
    assert known.facts is not None
    wanted = estimate(
        known.facts,
        known.settings,
        known.context_length,
        monitor.kind,
        device_bytes=monitor.smallest_device_bytes,
    )
    return corrected(wanted, _measurements(known, history, known.settings, known.context_length))


class Estimates:
    """Memory per rank, by what earlier engines took; kept until something changes that counts."""

    def __init__(self, history: LoadHistory, monitor: DeviceMonitor) -> None:
        self._history = history
        self._monitor = monitor
        self._kept: dict[tuple[str, int], tuple[KnownModel, object, Estimate]] = {}

    def of(self, known: KnownModel) -> Estimate:
        """For a model whose facts are known and whose split is settled."""
        monitor = self._monitor
        basis = (self._history.changes(known.id), monitor.kind, monitor.smallest_device_bytes)
        key = (known.id, known.settings.ranks)
        if key in self._kept:
            of, kept_basis, found = self._kept[key]
            is_same = of.facts is known.facts and of.settings == known.settings
            if is_same and kept_basis == basis:
                return found
        found = estimate_of(known, self._history, monitor)
        self._kept[key] = (known, basis, found)
        return found


def report_on(
    known: KnownModel, request: EstimateRequest, history: LoadHistory, monitor: DeviceMonitor
) -> EstimateReport:
    """The estimate at length, with this machine's devices. Raises InvalidRequestError."""
    if known.facts is None:
        raise InvalidRequestError(
            f"{known.id} cannot be estimated: {known.problem or 'its files are gone.'}",
            hint="Put its files back, or remove it with `appliance rm`.",
        )
    names = {device.id: device.name for device in monitor.devices()}
    targets = [
        Target(
            id=room.id,
            index=room.index,
            name=names[room.id],
            kind=monitor.kind,
            total_bytes=max(room.total_bytes, 0),
            free_bytes=max(room.free_bytes, 0),
        )
        for room in monitor.rooms()
        if room.is_usable
    ]
    settings = msgspec.structs.replace(known.settings, context_length=known.context_length)

    def correct(chosen: ModelSettings, context: int, wanted: Estimate) -> Estimate:
        if request.device_bytes is not None:
            return wanted
        return corrected(wanted, _measurements(known, history, chosen, context))

    return report(
        known.id,
        known.facts,
        changed(settings, request),
        targets_of(request, targets),
        kind=monitor.kind,
        correct=correct,
    )


def _measurements(
    known: KnownModel, history: LoadHistory, settings: ModelSettings, context: int
) -> list[Measurement]:
    return history.measurements(fingerprint(known.id, settings, _ANY_ENVIRONMENT, context))


def _logged(log: EngineLog) -> LoggedMemory:
    return read_memory_log(log.window(1, _LOG_LINES).lines)
