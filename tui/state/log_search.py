"""Matches of the filter among the lines before those held, which the server looks through."""

from appliance.protocol.engines import LogMatches
from tui.state.log_buffer import Filter, LogLine, line_of


class EarlierMatches:
    """What the server found so far; it looks from the end to the beginning."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.scanned_from: int | None = None
        """The oldest line that was looked at; None: no search was made."""
        self.is_complete = False
        self.dropped = 0
        """Lines that could not be looked at, as the server keeps them no longer."""

    def clear(self) -> None:
        """Another filter, another log, or other lines held."""
        self.lines.clear()
        self.scanned_from = None
        self.is_complete = False
        self.dropped = 0

    def take(self, found: LogMatches, keep: Filter) -> int:
        """Add what passes the filter, which may ask for more than the server; returns how many."""
        lines = [line_of(match.line, match.text) for match in found.matches]
        kept = [line for line in lines if keep.keeps(line)]
        self.lines[:0] = kept
        self.scanned_from = found.scanned_from
        self.is_complete = found.is_complete
        self.dropped += found.skipped
        return len(kept)

    def end_before(self, number: int) -> None:
        """Lines from `number` on are held themselves now."""
        self.lines = [line for line in self.lines if line.number < number]
