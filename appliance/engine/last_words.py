"""What an engine said last, and why it ended by that."""

import asyncio
from collections import deque
from datetime import datetime

from appliance.engine.failure import classify, seen_by_us
from appliance.protocol.engines import Failure, FailureCause

# The tracebacks of several ranks, or all options of vLLM, may stand after the line that counts.
_KEPT_LINES = 2000
# What matters of a line stands at its beginning; engines print whole tensors on occasion.
_LONGEST_READ = 500


def shortened(lines: list[str]) -> list[str]:
    """As much of each line as is worth reading."""
    return [line[:_LONGEST_READ] for line in lines]


class LastWords:
    """The newest lines of one engine's log."""

    def __init__(self, model: str, attempts: int) -> None:
        self._model = model
        self._attempts = attempts
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def add(self, lines: list[str]) -> None:
        """The next ones, shortened."""
        self._lines.extend(lines)

    async def explain(
        self,
        status: int,
        *,
        at: datetime,
        line_count: int,
        seen: tuple[FailureCause, str] | None,
        oom_killed: bool,
    ) -> Failure:
        """Why it ended with that exit status; `seen` is what we saw ourselves that was wrong."""
        lines = list(self._lines)
        failure = await asyncio.to_thread(
            classify,
            lines,
            first_line=line_count - len(lines) + 1,
            exit_status=status,
            at=at,
            attempts=self._attempts,
            model=self._model,
            oom_killed=oom_killed,
        )
        if seen is None:
            return failure
        cause, message = seen
        # The death of a process is explained by the log, if that says anything.
        if cause is FailureCause.KILLED and failure.log_line is not None:
            return failure
        return seen_by_us(failure, cause, message, self._model)
