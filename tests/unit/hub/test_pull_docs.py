import re
from pathlib import Path

from appliance.protocol.pulls import PullCause, PullState

DOCS = Path(__file__).parents[3] / "docs/pulls.md"


def test_each_state_and_cause_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)
    assert explained == [*PullState, *PullCause]
