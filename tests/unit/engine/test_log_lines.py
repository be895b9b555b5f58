"""Progress bars become one line; nothing else is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.log_lines import LONGEST_LINE, LineFolder

SHARDS = "Loading safetensors checkpoint shards:"


def folded(*reads: bytes) -> list[str]:
    folder = LineFolder()
    lines = [line for read in reads for line in folder.feed(read)]
    return [line.decode(errors="replace") for line in (*lines, *folder.end())]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        # tqdm begins each state with a carriage return and ends the last one with a line end.
        (
            f"\r{SHARDS}   0% Completed | 0/2 [00:00<?, ?it/s]\r{SHARDS}  50% Completed | 1/2"
            f" [00:04<00:04,  4s/it]\r{SHARDS} 100% Completed | 2/2 [00:08<00:00]\nnext\n",
            [f"{SHARDS} 100% Completed | 2/2 [00:08<00:00]", "next"],
        ),
        ("0it [00:00, ?it/s]\r12it [00:01, 12.0it/s]\r\r13it [00:02]\n", ["13it [00:02]"]),
        # A bar that is wiped when it is done.
        ("\r 50%|##  |\r100%|####|\r           \rINFO done\n", ["100%|####|", "INFO done"]),
        # Bars of two processes, in turns: each leaves its last state.
        (
            "\r(Worker_TP0 pid=1) shards:  0%\r(Worker_TP1 pid=2) shards:  0%"
            "\r(Worker_TP0 pid=1) shards: 50%\r(Worker_TP1 pid=2) shards: 70%\n",
            ["(Worker_TP0 pid=1) shards: 50%", "(Worker_TP1 pid=2) shards: 70%"],
        ),
        # A line that is printed in the midst of a bar.
        ("\rbar: 10%|#|\nINFO hi\n\rbar: 100%|#|\n", ["bar: 10%|#|", "INFO hi", "bar: 100%|#|"]),
        # Text that only ends with carriage returns is no bar.
        ("INFO 11-21 one\rINFO 11-21 two\r", ["INFO 11-21 one", "INFO 11-21 two"]),
        ("ValueError: no\rbut\n", ["ValueError: no", "but"]),
        ("a\r\nb\r\r\nc\n\r\n", ["a", "b", "c"]),
        ("bar 1%\rbar 2%", ["bar 2%"]),
        ("bar 1%\rbar 2%\r", ["bar 2%"]),
        ("", []),
        ("\r\r\r \r\n\r", []),
    ],
)  # fmt: skip
def test_lines_of_an_output(output: str, expected: list[str]) -> None:
    data = output.encode()
    assert folded(data) == expected
    assert folded(*(data[at : at + 1] for at in range(len(data)))) == expected


PIECES = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"bar: 1%", b"bar: 2%", b"b2: 3/4", b"text", b" ", b"x" * 17_000,
     b"(W pid=1) 5%", "ü".encode()]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40), st.lists(st.integers(1, 9_000), max_size=60))
def test_lines_do_not_depend_on_how_the_output_is_read(
    pieces: list[bytes], sizes: list[int]
) -> None:
    output = rest = b"".join(pieces)
    reads = []
    for size in sizes:
        reads.append(rest[:size])
        rest = rest[size:]
    assert folded(*reads, rest) == folded(output)


@given(st.lists(st.lists(PIECES, max_size=6).map(b"".join), max_size=20))
def test_each_line_has_its_last_state(parts: list[bytes]) -> None:
    output = b"\n".join(parts)
    lines = folded(output)
    assert all(line.strip() and len(line.encode()) <= LONGEST_LINE for line in lines)
    assert not any("\r" in line or "\n" in line for line in lines)
    # Model: of the states between two line ends, the last of each bar, and all that is no bar.
    expected = []
    for text in output.replace(b"\r\n", b"\n").split(b"\n"):
        bars: dict[bytes, bytes] = {}
        for cut in text.split(b"\r"):
            state = cut[:LONGEST_LINE]
            is_bar = any(count in state for count in (b"1%", b"2%", b"3/4", b"5%"))
            if is_bar:
                bar = state.split(b"1%")[0].split(b"2%")[0].split(b"3/4")[0].split(b"5%")[0]
                if not state.lstrip().startswith(b"(W"):
                    bar = bar.split(b"2")[0].split(b"1")[0].split(b"3")[0].split(b"5")[0]
                bars[bar.strip()] = state
            elif state.strip():
                expected.append(state.decode(errors="replace"))
        expected += [state.decode() for state in bars.values()]
    assert sorted(lines) == sorted(expected)


def test_bars_that_move_are_told_of() -> None:
    folder = LineFolder()
    told = []
    for read in (
        b"text without end", b"\nmore\n",
        b"\rshards: 10%", b"\rshards: 20%\rshards: 30%", b"\rshards: 40%\rother: 1/9 [",
        b"\rshards: 99%\nINFO\n", b"plain 50%", b"\n", b"end 7%\r", b"\n",
    ):  # fmt: skip
        folder.feed(read)
        told.append(folder.unfinished())
    assert told == [
        [], [], ["shards: 10%"], ["shards: 30%"], ["shards: 40%", "other: 1/9 ["],
        [], [], [], ["end 7%"], [],
    ]  # fmt: skip


def test_states_of_many_bars_are_bounded() -> None:
    output = b"".join(b"\r%s: 1%%" % (b"x" * number) for number in range(1, 201))
    folder = LineFolder()
    lines = folder.feed(output)
    assert len(lines) + 64 + 1 == 200
    assert len([*lines, *folder.end()]) == 200
