import json

import msgspec
import pytest

from appliance.errors import InvalidRequestError
from appliance.gateway.keep_alive import read_keep_alive, without_keep_alive
from appliance.slots.views import at_most

TEN_YEARS_S = 10 * 365 * 86400.0


def read_body(keep_alive: object) -> float | None:
    return read_keep_alive(keep_alive, msgspec.UNSET, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (300, 300.0),
        (0, 0.0),
        (0.5, 0.5),
        (-1, -1.0),
        (-30.5, -1.0),
        ("300", 300.0),
        ("0", 0.0),
        ("-1", -1.0),
        ("-1m", -1.0),
        ("-0s", 0.0),
        ("5m", 300.0),
        (" 5M ", 300.0),
        ("1h30m", 5400.0),
        ("1h2m3.5s", 3723.5),
        ("250ms", 0.25),
        ("24h", 86400.0),
        ("never", -1.0),
        (10**15, TEN_YEARS_S),
        ("99999999d", TEN_YEARS_S),
        (None, None),
        (msgspec.UNSET, None),
    ],
)
def test_numbers_are_seconds_and_texts_are_durations(value: object, seconds: float | None) -> None:
    assert read_body(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, [], [5], {}, {"seconds": 5}, 10**400, "x" * 9999),
        *("", " ", "-", "--1", "-never", "soon", "5 minutes", "5m later", "m5", "1h-5m", "1h5"),
        *("nan", "inf", "1e3", "5m\u0000", "\u0665m"),
    ],
)
def test_all_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="keep_alive") as caught:
        read_body(value)
    assert caught.value.param == "keep_alive"
    assert len(str(caught.value)) < 300


def test_ttl_and_the_header_say_the_same_and_are_named_when_wrong() -> None:
    assert read_keep_alive(msgspec.UNSET, "2m", None) == 120.0
    assert read_keep_alive(msgspec.UNSET, msgspec.UNSET, "2m") == 120.0
    with pytest.raises(InvalidRequestError) as caught:
        read_keep_alive(5, "soon", None)
    assert caught.value.param == "ttl"
    with pytest.raises(InvalidRequestError) as caught:
        read_keep_alive(5, msgspec.UNSET, "")
    assert caught.value.param == "X-Keep-Alive"


def test_the_body_beats_the_header_and_null_says_nothing() -> None:
    assert read_keep_alive(1, 2, "3") == 1.0
    assert read_keep_alive(None, 2, "3") == 2.0
    assert read_keep_alive(None, None, "3") == 3.0


def test_the_engine_gets_all_other_fields_as_they_were_written() -> None:
    body = (
        b'{ "keep_alive":\n"5m", "seed": 1.0e2, "model":"m", "\\u00e9" :"\\u00e9\xc3\xa9", "n":'
        b'12345678901234567890123, "messages": [ {"keep_alive": 1} ], "ttl": null }'
    )
    left = without_keep_alive(body)
    for part in (b"1.0e2", b'"\\u00e9\xc3\xa9"', b"12345678901234567890123"):
        assert part in left
    before = json.loads(body)
    del before["keep_alive"], before["ttl"]
    assert json.loads(left) == before
    assert list(json.loads(left)) == ["seed", "model", "é", "n", "messages"]


def test_a_key_that_is_spelled_with_escapes_is_removed_too() -> None:
    assert without_keep_alive(b'{"keep\\u005falive": 5, "keep_alive": 6, "a": 1}') == b'{"a":1}'


@pytest.mark.parametrize(
    ("asked", "limit", "counts"),
    [(5, -1, 5), (-1, -1, -1), (5, 60, 5), (90, 60, 60), (-1, 60, 60), (0, 60, 0), (5, 0, 0)],
)
def test_a_limit_shortens_what_a_request_asks_for(
    asked: float, limit: float, counts: float
) -> None:
    assert at_most(asked, limit) == counts
