"""What batches let the slots know beyond their requests. Event loop only."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from appliance.errors import ModelNotFoundError
from appliance.slots.board import SlotBoard


class BatchWork:
    """Part of the scheduler."""

    def __init__(self, board: SlotBoard) -> None:
        self._board = board

    @contextmanager
    def ahead(self, model: str) -> Iterator[None]:
        """Batches have lines for the model, also in moments in which none is in flight.

        Its engine has work for so long: other batches wait, as they do for a busy one.
        """
        self._board.has_lines.add(model)
        try:
            yield
        finally:
            self._board.has_lines.discard(model)
            self._board.wake.set()

    def excuse(self, model: str, failures: int) -> None:
        """The newest failures of its engines do not count: requests were at fault."""
        # The model may have been deleted meanwhile.
        with suppress(ModelNotFoundError):
            slot = self._board.slot(model)
            slot.series = slot.series.without(failures)
