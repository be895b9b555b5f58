"""`appliance logs --grep` asks until it has enough or the log is exhausted."""

from typing import Any

import pytest

from appliance.cli.logs import newest_matches
from appliance.protocol.engines import LogMatch, LogMatches

LOUD = [3, 40, 41, 77, 90]


class FakeClient:
    """A log of 100 lines, of which each answer covers ten."""

    def __init__(self) -> None:
        self.queries: list[dict[str, Any]] = []

    def get(self, path: str, kind: type[LogMatches], **query: Any) -> LogMatches:
        self.queries.append(query)
        to = query.get("before", 101)
        first = max(to - 10, 1)
        found = [line for line in LOUD if first <= line < to]
        if len(found) >= query["tail"]:
            found = found[len(found) - query["tail"] :]
            first = found[0] if found else to
        return kind(
            engine_id="e",
            model="m",
            total_lines=100,
            matches=[LogMatch(line=line, text=f"loud {line}") for line in found],
            scanned_from=first,
            scanned_to=to,
            is_complete=first == 1,
            skipped=1,
        )


@pytest.mark.parametrize(
    ("count", "expected", "calls"),
    [(1, [90], 2), (2, [77, 90], 3), (3, [41, 77, 90], 6), (9, LOUD, 10), (0, [], 1)],
)
def test_as_many_as_are_wanted(count: int, expected: list[int], calls: int) -> None:
    client = FakeClient()
    found = newest_matches(client, "/logs", count, {"grep": "loud"})  # type: ignore[arg-type]
    assert [match.line for match in found.matches] == expected
    assert len(client.queries) == calls
    assert all(query["grep"] == "loud" for query in client.queries)
    assert found.scanned_to == 101
    assert found.skipped == calls
