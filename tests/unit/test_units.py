import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.units import format_duration, format_size, parse_duration, parse_size

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("512B", 512),
        ("2k", 2000),
        ("2KB", 2000),
        ("2KiB", 2048),
        ("500M", 500_000_000),
        ("500 MiB", 524_288_000),
        ("8GiB", 8 * GIB),
        ("8gib", 8 * GIB),
        ("8Gi", 8 * GIB),
        (" 1.5 GiB ", 1_610_612_736),
        ("2TB", 2_000_000_000_000),
        ("1TiB", 1024 * GIB),
    ],
)
def test_size_is_read(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "8 gallons", "1,5GiB", "8GiBB", "0x10", "1e9"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write for example 8GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (30, 30.0),
        (0.5, 0.5),
        ("30", 30.0),
        ("30s", 30.0),
        ("250ms", 0.25),
        ("10m", 600.0),
        ("1.5h", 5400.0),
        ("2D", 172_800.0),
        (" 15 m ", 900.0),
        ("never", -1.0),
        ("Never", -1.0),
        ("-1", -1.0),
    ],
)
def test_duration_is_read(text: str | float, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "m", "-5s", "10 minutes", "1:30", "always"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: write for example 30s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (300 * 1024**2, "300 MiB"),
        (GIB, "1.0 GiB"),
        (1_610_612_736, "1.5 GiB"),
        (141 * GIB, "141.0 GiB"),
    ],
)
def test_size_is_printed_in_binary_units(size: int, expected: str) -> None:
    assert format_size(size) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "never"),
        (0.25, "0.2 s"),
        (14.2, "14 s"),
        (60, "1:00"),
        (125, "2:05"),
        (3599, "59:59"),
        (3600, "1h 0m"),
        (11_520, "3h 12m"),
        (86_400 * 4 + 7200, "4d 2h"),
    ],
)
def test_duration_is_printed_for_people(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@given(st.integers(0, 2**44))
def test_printed_size_is_read_back_to_what_was_shown(size: int) -> None:
    back = parse_size(format_size(size))
    assert abs(back - size) <= max(0.051 * GIB if size >= GIB else size / 2, 0.5)
    assert format_size(back) == format_size(size)


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_written_duration_is_read_back(count: int, unit: str) -> None:
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}[unit]
    assert parse_duration(f"{count}{unit}") == pytest.approx(count * factor)
