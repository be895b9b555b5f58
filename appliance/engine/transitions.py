"""The state of one engine and the events that tell of its changes."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from appliance.engine.state import may_follow
from appliance.protocol.engines import EngineState
from appliance.protocol.events import Event, Transition

logger = logging.getLogger(__name__)


class EngineStates:
    """Begins at `starting`; `changed` is called after each transition was published."""

    def __init__(
        self,
        model: str,
        engine_id: str,
        *,
        publish: Callable[[Event], None],
        changed: Callable[[], None],
    ) -> None:
        self.now = EngineState.STARTING
        self._model = model
        self._engine_id = engine_id
        self._publish = publish
        self._changed = changed
        self._since = time.monotonic()

    def to(self, state: EngineState, reason: str) -> None:
        """The next state; one that may not follow is left out: the engine is beyond it."""
        before = self.now
        if before is state or not may_follow(before, state):
            return
        at = time.monotonic()
        self.now = state
        logger.info(
            "engine.%s model=%s engine=%s reason=%s", state, self._model, self._engine_id, reason
        )
        self._publish(
            Transition(
                at=datetime.now(UTC),
                model=self._model,
                engine_id=self._engine_id,
                before=before,
                after=state,
                reason=reason,
                duration_s=round(at - self._since, 3),
            )
        )
        self._since = at
        self._changed()
