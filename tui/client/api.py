"""What the interface asks of the server, and how that can fail."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from appliance.protocol.batches import BatchProgress, LineFailure
from appliance.protocol.engines import Engine, LogMatches, LogWindow
from appliance.protocol.events import Event
from appliance.protocol.models import Model
from appliance.protocol.placement import PlanVerdict
from appliance.protocol.system import Snapshot


class ClientError(Exception):
    """A call that failed; `message` says what, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnreachableError(ClientError):
    """There is no server, or the link to it broke."""


class ApiError(ClientError):
    """The server answered with an error."""

    def __init__(self, message: str, hint: str = "", *, status: int, code: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Heard:
    """One message of the event stream; a heartbeat has no event."""

    event: Event | None = None
    seq: int | None = None


class Client(Protocol):
    """The calls of the management API that the interface uses; all may raise ClientError."""

    async def state(self) -> Snapshot:
        """Everything at once."""
        ...

    def events(self, since: int | None) -> AsyncIterator[Heard]:
        """The event stream after number `since`."""
        ...

    async def plan(self, model: str) -> PlanVerdict:
        """What a load would do."""
        ...

    async def load(self, model: str) -> Model:
        """Start to load a model."""
        ...

    async def unload(self, model: str) -> Model:
        """Start to unload a model."""
        ...

    async def act_on_batch(self, batch_id: str, action: str) -> BatchProgress:
        """`pause`, `resume` or `cancel` a batch."""
        ...

    async def retry_batch(self, batch_id: str) -> BatchProgress:
        """Make a new batch of the lines that have no answer."""
        ...

    def file_content(self, file_id: str) -> AsyncIterator[bytes]:
        """The content of a file, a piece at a time."""
        ...

    async def batch_failures(self, batch_id: str) -> list[LineFailure]:
        """The first lines of a batch that failed, and why."""
        ...

    async def engines(self) -> list[Engine]:
        """The engines that the server remembers."""
        ...

    async def log_window(self, engine: str, first_line: int, count: int) -> LogWindow:
        """Some lines of an engine's log."""
        ...

    async def log_before(self, engine: str, before: int, count: int) -> LogWindow:
        """The last lines before one of an engine's log, of those that are kept."""
        ...

    async def search_log(self, engine: str, text: str, before: int, count: int) -> LogMatches:
        """The last lines before one that contain `text`, as far as the server got soon."""
        ...

    def follow_log(self, engine: str, tail: int) -> AsyncIterator[LogWindow | None]:
        """The last lines, then new ones as they come; None is a heartbeat."""
        ...

    async def aclose(self) -> None:
        """Let go of the connections."""
        ...
