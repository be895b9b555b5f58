"""Reasons from an error file, whole or still growing."""

from pathlib import Path

import msgspec

from appliance.batch.failures import first_failures
from appliance.batch.journal import result_id


def entry(number: int, response: object, error: object = None) -> bytes:
    line = {
        "id": result_id("batch_1", number),
        "custom_id": f"r{number}",
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"


def test_reasons_of_refused_and_of_lines_that_never_ran(tmp_path: Path) -> None:
    file = tmp_path / "errors.jsonl"
    body = {"error": {"message": "too hot", "type": "x", "param": None, "code": "bad_temperature"}}
    file.write_bytes(
        entry(4, {"status_code": 400, "request_id": "x", "body": body})
        + entry(0, None, {"code": "batch_expired", "message": "too late"})
        + entry(7, {"status_code": 503, "request_id": "x", "body": None})
        + entry(8, None, {"code": "x", "message": "y"})[:-9]
    )
    found = first_failures("batch_1", [tmp_path / "none", file], 20)
    assert [(each.line, each.custom_id, each.status_code, each.code) for each in found] == [
        (5, "r4", 400, "bad_temperature"),
        (1, "r0", None, "batch_expired"),
        (8, "r7", 503, None),
    ]
    assert [each.message for each in found] == ["too hot", "too late", "no reason given"]
    assert len(first_failures("batch_1", [file], 2)) == 2
    assert first_failures("batch_1", [tmp_path / "none"], 2) == []
