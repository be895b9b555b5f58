"""What is known about all slots: read by everybody, changed only by the scheduler."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from appliance.config.settings import SlotSettings
from appliance.engine.supervisor import EngineSupervisor
from appliance.estimate.estimator import Estimate
from appliance.protocol.devices import Device
from appliance.protocol.engines import Engine
from appliance.protocol.estimates import EstimateReport, EstimateRequest
from appliance.protocol.events import EngineChanged, EngineRemoved, Event, ModelChanged
from appliance.protocol.models import Model
from appliance.protocol.placement import PlanVerdict
from appliance.protocol.system import Totals
from appliance.registry.registry import KnownModel, Registry
from appliance.slots.backoff import FailureSeries
from appliance.slots.decision import Wish
from appliance.slots.eviction import expected_cost_s
from appliance.slots.history import LoadHistory
from appliance.slots.measuring import Estimates, report_on
from appliance.slots.monitor import DeviceMonitor
from appliance.slots.planner import plan
from appliance.slots.plans import (
    DeviceRoom,
    Option,
    Place,
    Plan,
    PlanRequest,
    Refuse,
    Resident,
    Wait,
)
from appliance.slots.rates import RequestRate
from appliance.slots.requests import Changes, plan_request, usual_tp_size
from appliance.slots.sleep_history import SleepHistory
from appliance.slots.slot import Priority, Running, Slot
from appliance.slots.verdict import verdict
from appliance.slots.views import at_most, model_view

# Without an earlier load to go by: a start, and weights from a fast disk.
_USUAL_START_S = 10.0
_USUAL_READ_BYTES_PER_S = 10**9
_NOTHING = Estimate()


class SlotBoard:
    """Slots by model, and the views on them."""

    def __init__(
        self,
        *,
        registry: Registry,
        monitor: DeviceMonitor,
        history: LoadHistory,
        sleep_history: SleepHistory,
        settings: SlotSettings,
        slots: dict[str, Slot],
        publish: Callable[[Event], None],
    ) -> None:
        self._registry = registry
        self._monitor = monitor
        self._history = history
        self._sleep_history = sleep_history
        self._settings = settings
        self._slots = slots
        self._publish = publish
        self._changed: set[str] = set()
        self.wake = asyncio.Event()
        """Set whenever a decision may have changed."""
        self.has_lines: set[str] = set()
        """Models that batches have lines for."""
        self.rate = RequestRate()
        self._changes: dict[str, Changes] = {}
        self._estimates = Estimates(history, monitor)

    def slot(self, model: str) -> Slot:
        """The slot of a known model. Raises ModelNotFoundError."""
        self._registry.get(model)
        slot = self._slots.get(model)
        if slot is None:
            slot = self._slots[model] = Slot(model=model)
        return slot

    def touch(self, slot: Slot) -> None:
        """The slot changed: decide again soon, tell people soon."""
        self._changed.add(slot.model)
        self.wake.set()

    def flush_changes(self) -> None:
        """Publish the models that changed since the last call (a few times a second)."""
        changed, self._changed = self._changed, set()
        rooms = self.rooms() if changed else []
        for model in changed:
            if model in self._slots:
                self._publish(ModelChanged(model=self._model(model, rooms)))

    def keep_ended(
        self,
        slot: Slot,
        *,
        last: EngineSupervisor | None,
        first: EngineSupervisor | None,
    ) -> None:
        """From now on these of the slot's ended engines are kept; others are forgotten."""
        before = slot.ended()
        slot.last, slot.first = last, first
        for each in before:
            if each not in slot.ended():
                self._publish(EngineRemoved(id=each.id))

    def forget_failures(self, slot: Slot) -> None:
        """A person acted: it is tried again at once, and counted anew."""
        slot.failure, slot.first_failure, slot.retry_at = None, None, None
        slot.series = FailureSeries()
        self.keep_ended(slot, last=slot.last, first=None)

    def renew(self, model: str) -> None:
        """A model was added or its settings changed. Raises ModelNotFoundError."""
        slot = self.slot(model)
        self.forget_failures(slot)
        self.touch(slot)
        self.tell(slot)

    def mark_changed(self, model: str) -> None:
        """Tell people about the model soon; no decision depends on it."""
        self._changed.add(model)

    def on_event(self, event: Event) -> None:
        """A model shows its engine's state and progress, so it changes with it."""
        if isinstance(event, EngineChanged) and event.engine.model in self._slots:
            self._changed.add(event.engine.model)

    def tell(self, slot: Slot) -> None:
        """Publish one model now."""
        self._changed.discard(slot.model)
        self._publish(ModelChanged(model=self.model(slot.model)))

    def running(self) -> list[Running]:
        """All engines that are not over."""
        return [slot.running for slot in self._slots.values() if slot.running is not None]

    def devices(self) -> list[Device]:
        """The devices with what is on them."""
        return self._monitor.devices()

    def rooms(self) -> list[DeviceRoom]:
        """The devices for the planner."""
        return self._monitor.rooms()

    def totals(self) -> Totals:
        """Rates of the whole server."""
        return Totals(
            requests_per_s=self.rate.per_second(time.monotonic()),
            tokens_per_s=round(sum(each.tokens_per_s or 0.0 for each in self.running()), 1),
            requests_total=sum(slot.requests_total for slot in self._slots.values()),
        )

    def model(self, model: str) -> Model:
        """One model as it is now. Raises ModelNotFoundError."""
        return self._model(model, self.rooms())

    def _model(self, model: str, rooms: Sequence[DeviceRoom]) -> Model:
        known = self._registry.get(model)
        return model_view(
            known,
            self.slot(model),
            wanted=self.estimate(self._settled(known, rooms)),
            idle_timeout_s=self.idle_timeout_s(known),
            sleep=self._sleep_history.of_model(model),
            now=time.monotonic(),
        )

    def models(self) -> list[Model]:
        """All models, oldest first."""
        rooms = self.rooms()
        return [self._model(known.id, rooms) for known in self._registry.models()]

    def engines(self) -> list[Engine]:
        """Running engines, and for each model the one that ended last and that failed first."""
        return [supervisor.view() for supervisor in self._supervisors()]

    def engine(self, ref: str) -> EngineSupervisor | None:
        """An engine by its id, or the newest one of a model."""
        slot = self._slots.get(ref)
        if slot is not None:
            return slot.running.supervisor if slot.running else slot.last
        return next((each for each in self._supervisors() if each.id == ref), None)

    def estimate(self, known: KnownModel, devices: int | None = None) -> Estimate:
        """Memory per rank, split over so many devices; None: over as many as it usually takes."""
        if known.facts is None:
            return _NOTHING
        if devices is not None:
            known = known.split_over(devices)
        elif known.settings.tp_size == "auto":
            known = self._settled(known, self.rooms())
        return self._estimates.of(known)

    def estimate_report(self, model: str, request: EstimateRequest) -> EstimateReport:
        """The estimate at length. Raises ModelNotFoundError and InvalidRequestError."""
        known = self._settled(self._registry.get(model), self.rooms())
        return report_on(known, request, self._history, self._monitor)

    def _settled(self, known: KnownModel, rooms: Sequence[DeviceRoom]) -> KnownModel:
        """Split over as many devices as it usually takes, where the owner leaves that open."""
        if known.facts is None or known.settings.tp_size != "auto":
            return known
        return known.split_over(usual_tp_size(plan_request(known, rooms, self.estimate), rooms))

    def idle_timeout_s(self, known: KnownModel) -> float:
        """Seconds; negative: it stays."""
        if known.settings.pinned or known.settings.always_on:
            return -1.0
        running = self.slot(known.id).running
        if running is not None and running.keep_alive_s is not None:
            return at_most(running.keep_alive_s, self._settings.max_keep_alive_s)
        own = known.settings.idle_timeout_s
        return self._settings.idle_timeout_s if own is None else own

    def wish(self, slot: Slot, known: KnownModel, rooms: Sequence[DeviceRoom], now: float) -> Wish:
        """What those who wait for the slot want; someone does."""
        return self._wish(slot, self._request(known, rooms), self._switch_s(known), now)

    def wish_to_wake(
        self, slot: Slot, running: Running, rooms: Sequence[DeviceRoom], now: float
    ) -> Wish:
        """The same for one whose engine sleeps: it needs room where it is."""
        known = self._registry.get(slot.model)
        wake_s = self._sleep_history.wake_s(slot.model)
        switch_s = self._switch_s(known) if wake_s is None else wake_s
        return self._wish(slot, self._request_to_wake(running, known, rooms), switch_s, now)

    def fits_only_elsewhere(
        self, running: Running, rooms: Sequence[DeviceRoom], now: float
    ) -> bool:
        """Whether it cannot be woken soon where it is, and a fresh engine has room at once.

        Busy engines are in its way; or one of its devices cannot be used, then also where others
        would have to go first.
        """
        known = self._registry.get(running.supervisor.model)
        others = [each for each in self.residents(now) if each.model != known.id]
        usable = {room.id for room in rooms if room.is_usable}
        if any(each.device_id not in usable for each in running.supervisor.placement.shares):
            elsewhere = plan(rooms, others, self._request(known, rooms))
            return not isinstance(elsewhere, Refuse) and usable.issuperset(
                room.id for room in elsewhere.devices
            )
        here = plan(rooms, others, self._request_to_wake(running, known, rooms))
        if not isinstance(here, Wait) or all(each.is_leaving for each in here.residents):
            return False
        return isinstance(plan(rooms, others, self._request(known, rooms)), Place)

    def _request_to_wake(
        self, running: Running, known: KnownModel, rooms: Sequence[DeviceRoom]
    ) -> PlanRequest:
        shares = running.supervisor.placement.shares
        residue = running.supervisor.sleeper.residue_bytes // len(shares)
        need_bytes = max(max(share.memory_bytes for share in shares) - residue, 0)
        return replace(
            self._request(known, rooms),
            options=(Option(len(shares), need_bytes),),
            devices=frozenset(share.device_id for share in shares),
            avoid=frozenset(),
        )

    def _wish(self, slot: Slot, request: PlanRequest, switch_s: float, now: float) -> Wish:
        people = [waiter.since for waiter in slot.waiting(Priority.PEOPLE)]
        if slot.wanted_since is not None:
            people.append(slot.wanted_since)
        since = people or [waiter.since for waiter in slot.waiting()]
        return Wish(
            request=request,
            since=min(since),
            waiting=len(people),
            waited_s=sum(now - each for each in people),
            switch_s=switch_s,
        )

    def residents(self, now: float) -> list[Resident]:
        """The engines for the planner."""
        return [self._resident(each, now) for each in self.running()]

    def _request(self, known: KnownModel, rooms: Sequence[DeviceRoom]) -> PlanRequest:
        return plan_request(known, rooms, self.estimate, self._changes_of(known, len(rooms)))

    def _changes_of(self, known: KnownModel, devices: int) -> Changes:
        """Kept as long as neither the model's settings nor the devices change."""
        where = (devices, self._monitor.kind, self._monitor.smallest_device_bytes)
        kept = self._changes.get(known.id)
        if kept is None or not kept.is_for(known, *where):
            for gone in self._changes.keys() - self._slots.keys():
                del self._changes[gone]
            kept = self._changes[known.id] = Changes(known, *where)
        return kept

    def _switch_s(self, known: KnownModel) -> float:
        """To load it: as earlier, else by its size."""
        earlier = self._history.median_load_s(known.id)
        if earlier is not None:
            return earlier
        weights = known.facts.weights_bytes if known.facts else 0
        return _USUAL_START_S + weights / _USUAL_READ_BYTES_PER_S

    def dry_run(self, model: str) -> PlanVerdict:
        """What a load would do now, without doing it. Raises ModelNotFoundError."""
        running = self.slot(model).running
        known = self._registry.get(model)
        is_up = running is not None and not running.is_leaving
        if known.facts is None:
            decision: Plan | None = Refuse(known.problem or "Its files are gone.", "")
        else:
            residents, rooms = self.residents(time.monotonic()), self.rooms()
            decision = None if is_up else plan(rooms, residents, self._request(known, rooms))
        devices = running.supervisor.placement.tp_size if running and is_up else None
        if decision is not None and not isinstance(decision, Refuse):
            devices = len(decision.devices)
        return verdict(
            decision,
            self.estimate(known, devices),
            model=model,
            placement=running.supervisor.placement if running and is_up else None,
            load_s=self._history.median_load_s(model),
            loads=len(self._history.of_model(model)),
            is_asleep=running is not None and running.is_asleep,
        )

    def expected_wait_s(self, slot: Slot) -> float | None:
        """How long a load of this model still takes, by earlier ones."""
        progress = slot.running.supervisor.view().progress if slot.running else None
        if progress is not None and progress.eta_s is not None:
            return max(progress.eta_s, 1.0)
        if slot.running is not None and slot.running.is_asleep:
            return self._sleep_history.wake_s(slot.model)
        return self._history.median_load_s(slot.model)

    def _supervisors(self) -> list[EngineSupervisor]:
        found = []
        for slot in self._slots.values():
            if slot.running is not None:
                found.append(slot.running.supervisor)
            found += slot.ended()
        return found

    def _lost_s(self, running: Running, known: KnownModel) -> float:
        """What its eviction costs: a wake if it falls asleep, or the wake that it then is not."""
        load_s, wake_s = self._switch_s(known), self._sleep_history.wake_s(known.id)
        if wake_s is None or known.settings.sleep == "off":
            return load_s
        return max(load_s - wake_s, 0.0) if running.is_asleep else min(load_s, wake_s)

    def _resident(self, running: Running, now: float) -> Resident:
        supervisor = running.supervisor
        known = self._registry.get(supervisor.model)
        arrivals = self.slot(known.id).arrivals
        rate_per_s = arrivals.per_second(now)
        reload_s = self._lost_s(running, known)
        # A batch pauses between its requests; one that is over needs its turn no more.
        has_work = running.in_flight > 0 or known.id in self.has_lines
        is_batch_only = has_work and running.in_flight == running.in_flight_batch
        kept_s = running.turn_s if has_work else 0.0
        return Resident(
            engine_id=supervisor.id,
            model=supervisor.model,
            bytes_by_device=self._monitor.promised(running),
            last_used=running.last_used,
            is_busy=has_work or running.is_starting,
            is_pinned=known.settings.pinned or known.settings.always_on,
            is_always_on=known.settings.always_on,
            is_exclusive=known.settings.exclusive,
            is_leaving=running.is_leaving,
            is_batch_only=is_batch_only,
            rate_per_s=rate_per_s,
            reload_s=reload_s,
            cost_s=expected_cost_s(
                reload_s=reload_s,
                rate_per_s=rate_per_s,
                idle_s=now - running.last_used,
                next_in_s=arrivals.next_in_s(now),
            ),
            ready_since=running.ready_since,
            kept_until=(running.ready_since or now) + kept_s,
        )
