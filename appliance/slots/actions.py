"""Carries out what was decided: starts, stops, drains. Part of the scheduler."""

import logging
import time
from collections.abc import Sequence

from appliance.protocol.engines import EngineState, FailureCause
from appliance.registry.registry import Registry
from appliance.slots.board import SlotBoard
from appliance.slots.decision import (
    Action,
    Drain,
    GiveUp,
    Hold,
    Policy,
    Start,
    Stop,
    Wish,
    decide,
)
from appliance.slots.leases import LeaseDesk
from appliance.slots.lives import EngineLives
from appliance.slots.plans import DeviceRoom, Resident
from appliance.slots.sleep_tier import SleepTier
from appliance.slots.slot import Running, Slot

logger = logging.getLogger(__name__)


class SlotActions:
    """What can be done to slots and their engines."""

    def __init__(
        self,
        *,
        registry: Registry,
        board: SlotBoard,
        desk: LeaseDesk,
        lives: EngineLives,
        tier: SleepTier,
        drain_limit_s: float,
    ) -> None:
        self._registry = registry
        self._board = board
        self._desk = desk
        self._lives = lives
        self._tier = tier
        self._drain_limit_s = drain_limit_s

    def carry_out(self, action: Action) -> None:
        """One action; what goes wrong with one model ends that model's wish alone."""
        slot = self._board.slot(action.model)
        try:
            match action:
                case Start():
                    self._start(slot, action)
                case Stop():
                    self._stop(slot, action.victims)
                case Drain():
                    self._drain(slot, action.residents)
                case Hold():
                    self._say_why(slot, action.reason)
                case GiveUp() if slot.running is not None:
                    # It may fit elsewhere, with a fresh engine.
                    message = action.refusal.message
                    slot.running.supervisor.stop(f"cannot be woken where it is: {message}")
                case GiveUp():
                    refusal = action.refusal
                    self._lives.give_up(
                        slot, FailureCause.DOES_NOT_FIT, refusal.message, refusal.hint
                    )
        except Exception as error:
            logger.exception("slots.action_failed model=%s", slot.model)
            self.fail(slot, error)

    def fail(self, slot: Slot, error: Exception) -> None:
        """A bug met it on its way to an engine."""
        message = f"The server failed to start it: {error}."
        self._lives.give_up(slot, FailureCause.CRASHED, message, "The server's log says more.")

    def fail_faulty(
        self,
        wishes: Sequence[Wish],
        rooms: Sequence[DeviceRoom],
        residents: Sequence[Resident],
        policy: Policy,
        now: float,
    ) -> None:
        """Models that cannot even be decided alone, for a bug; the others go on without them."""
        for wish in wishes:
            try:
                decide([wish], rooms, residents, policy, now)
            except Exception as error:
                logger.exception("slots.wish_failed model=%s", wish.model)
                self.fail(self._board.slot(wish.model), error)

    def let_go(self, running: Running, reason: str) -> None:
        """No further requests; the engine sleeps or ends once those in flight are over."""
        if running.drain_reason is None:
            running.drain_reason = reason
        if running.drain_since is None:
            running.drain_since = time.monotonic()
        if running.supervisor.state is EngineState.READY:
            running.supervisor.drain(reason)
        self.stop_if_drained(running)

    def stop_if_drained(self, running: Running) -> None:
        """What is to go and has nothing left to do goes."""
        if running.drain_reason is None or running.in_flight:
            return
        if running.must_end or running.supervisor.state is EngineState.ASLEEP:
            running.supervisor.stop(running.drain_reason)
        else:
            slot = self._board.slot(running.supervisor.model)
            self._tier.retire(slot, running, running.drain_reason)

    def end_drains(self, now: float) -> None:
        """Engines that are drained go; one whose requests do not end is not waited for for ever."""
        for running in self._board.running():
            self.stop_if_drained(running)
            since, limit_s = running.drain_since, self._drain_limit_s
            if since is not None and now - since > limit_s:
                running.supervisor.stop(f"{running.drain_reason}; not idle after {limit_s:.0f} s")

    def take_back_drains(self, slots: Sequence[Slot], wishing: set[str]) -> None:
        """An engine that was drained for nobody any more takes requests again."""
        for slot in slots:
            running = slot.running
            if running is None or running.drained_for is None or running.supervisor.is_stopping:
                continue
            if running.is_falling_asleep:
                continue
            if running.drained_for not in wishing:
                running.drained_for, running.drain_reason = None, None
                slot.wanted_since = None
                running.drain_since = None
                running.supervisor.undrain("the model it was drained for is no longer wanted")
                self._desk.grant_all(slot, running)

    def _start(self, slot: Slot, start: Start) -> None:
        running = slot.running
        if running is not None:
            if running.is_asleep:
                self._tier.wake(slot, running, start.turn_s)
            return
        known = self._registry.get(slot.model)
        wanted = self._board.estimate(known, len(start.devices))
        self._lives.launch(slot, known, start.devices, wanted, turn_s=start.turn_s)

    def _stop(self, slot: Slot, victims: Sequence[Resident]) -> None:
        for victim, running in self._engines_of(victims):
            self._swap_begins(slot, victim)
            logger.info("slots.evicting model=%s for=%s", victim.model, slot.model)
            running.is_evicted = True
            self.let_go(running, f"evicted for {slot.model}")
            self._board.touch(victim)
        self._lives.prepare(self._registry.get(slot.model))

    def _drain(self, slot: Slot, residents: Sequence[Resident]) -> None:
        for resident, running in self._engines_of(residents):
            if not running.takes_requests:
                continue
            self._swap_begins(slot, resident)
            running.drained_for = slot.model
            self.let_go(running, f"drained for {slot.model}, which has waited")
            self._board.touch(resident)
        self._lives.prepare(self._registry.get(slot.model))

    def _engines_of(self, residents: Sequence[Resident]) -> list[tuple[Slot, Running]]:
        slots = [self._board.slot(resident.model) for resident in residents]
        return [(slot, slot.running) for slot in slots if slot.running is not None]

    def _swap_begins(self, slot: Slot, victim: Slot) -> None:
        if slot.swap_started is None:
            slot.swap_started = time.monotonic()
        slot.swap_evicted.append(victim.model)

    def _say_why(self, slot: Slot, reason: str) -> None:
        if slot.waits_for != reason:
            slot.waits_for = reason
            self._board.tell(slot)
