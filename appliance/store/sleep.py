"""Stored verdicts about sleep. Functions for `Database.read` and `write`."""

import msgspec

from appliance.protocol.sleep import SleepVerdict
from appliance.store.tables import SleepVerdictRow


def all_verdicts() -> list[tuple[str, str, SleepVerdict]]:
    """Models and fingerprints with what is known about one of their levels."""
    return [
        (row.model, row.fingerprint, msgspec.json.decode(row.verdict, type=SleepVerdict))
        for row in SleepVerdictRow.select().order_by(SleepVerdictRow.level)
    ]


def put_verdict(model: str, fingerprint: str, verdict: SleepVerdict) -> None:
    """Add or replace."""
    SleepVerdictRow.replace(
        fingerprint=fingerprint,
        level=verdict.level,
        model=model,
        verdict=msgspec.json.encode(verdict).decode(),
    ).execute()
