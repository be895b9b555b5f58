"""What screens ask of the app: messages, so that no screen needs to know another."""

from typing import Literal

from textual.message import Message

BatchAction = Literal["pause", "resume", "cancel", "retry"]


class OpenLogs(Message):
    """Show the log of a model's engine, at a line where one is given."""

    def __init__(self, model: str, line: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.line = line


class AskLoad(Message):
    """Ask whether to load a model."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model


class AskUnload(Message):
    """Ask whether to unload a model."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model


class OpenDetails(Message):
    """Show what is known about a model, its failure first."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model


class OpenBatch(Message):
    """Show what is known about a batch, and why lines failed."""

    def __init__(self, batch_id: str) -> None:
        super().__init__()
        self.batch_id = batch_id


class AskBatch(Message):
    """Ask whether to pause, resume or cancel a batch, or to try its failed lines again."""

    def __init__(self, batch_id: str, action: BatchAction) -> None:
        super().__init__()
        self.batch_id = batch_id
        self.action = action


class SaveAnswers(Message):
    """Ask where to save the answers of a batch."""

    def __init__(self, batch_id: str) -> None:
        super().__init__()
        self.batch_id = batch_id


class ShowCommand(Message):
    """Show the command lines that do the same."""

    def __init__(self, commands: list[tuple[str, str]]) -> None:
        super().__init__()
        self.commands = commands
