"""Whether engines die of single lines of a batch, or of something else.

A line is found out by trying it alone, and what it kills then says little about the engines, as
long as they answer others: such deaths shall not keep a model from being started. The proof is
an answer between them; without one nobody can tell a bad line from a bad engine.
"""


class Trial:
    """The deaths of one model's engines under lines of batches, since lines are fed to it."""

    def __init__(self) -> None:
        self.needs_proof = False
        """A line died alone and none was answered since: another is to be tried in between."""
        self._in_company = 0
        self._of_one_line = 0
        self._last_engine = ""

    def died(self, engine_id: str, *, alone: bool) -> None:
        """An engine ended under a line; told by each line that it worked on."""
        if engine_id == self._last_engine:
            return
        self._last_engine = engine_id
        if alone:
            self._of_one_line += 1
            self.needs_proof = True
        else:
            self._in_company += 1

    def given_up(self) -> None:
        """A line is not tried any more: it also was what killed an engine in company."""
        if self._in_company:
            self._in_company -= 1
            self._of_one_line += 1

    def answered(self) -> int:
        """The engine works; how many of the deaths before were the fault of lines alone."""
        deaths, self._of_one_line = self._of_one_line, 0
        self.needs_proof = False
        return deaths
