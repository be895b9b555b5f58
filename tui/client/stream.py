"""Server-sent events: bytes to messages."""

from dataclasses import dataclass

LONGEST_MESSAGE = 32 * 1024 * 1024


class StreamTooLongError(ValueError):
    """A message without end."""


@dataclass(frozen=True)
class Message:
    """One message; a comment (heartbeat) has no data."""

    data: str | None = None
    id: str | None = None


class SseParser:
    """Collects chunks and gives the messages that they complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._id: str | None = None
        self._size = 0

    def feed(self, chunk: bytes) -> list[Message]:
        """Messages that end within `chunk`."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._size += len(chunk)
        if self._size > LONGEST_MESSAGE:
            raise StreamTooLongError(
                f"a message of the event stream passed {LONGEST_MESSAGE} bytes"
            )
        return [message for line in lines if (message := self._take(line)) is not None]

    def _take(self, raw: bytes) -> Message | None:
        line = raw.removesuffix(b"\r").decode("utf-8", "replace")
        if line.startswith(":"):
            self._size = len(self._rest)
            return Message()
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        return None

    def _complete(self) -> Message | None:
        self._size = len(self._rest)
        data, self._data = self._data, []
        identifier, self._id = self._id, None
        return Message("\n".join(data), identifier) if data else None
