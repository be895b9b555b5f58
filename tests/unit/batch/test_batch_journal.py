"""The journal after a cut at any position."""

import json
import os
from pathlib import Path

import pytest

from appliance.batch.journal import Journal, JournalFile, line_number, read_result, result_id

BATCH = "batch_0123456789abcdef"
OTHER = "batch_fedcba9876543210"


def result(number: int, *, batch_id: str = BATCH, text: str = "x", was_tried: bool = True) -> bytes:
    body = {"text": text, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    answer = {"status_code": 200, "request_id": "q", "body": body}
    line = {
        "id": result_id(batch_id, number),
        "custom_id": f"r{number}",
        "response": answer if was_tried else None,
        "error": None if was_tried else {"code": "batch_cancelled", "message": ""},
    }
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


LINES = [result(0), result(3, text="é\u2028\x85\\n\\ud83d\\ude00"), result(1)]
TAILS = [b"", bytes(100), bytes(4096) + b"\n", b"\n", b"{}\n", b"\xff" * 9 + b"\n", b"null\n"]


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
def test_every_cut_leaves_the_whole_lines_before_it(tmp_path: Path, tail: bytes) -> None:
    whole = b"".join(LINES)
    ends = [len(LINES[0]), len(LINES[0] + LINES[1]), len(whole)]
    for cut in range(len(whole) + 1):
        # A new name each time: ext4 writes a file to the disk at once that is cut to nothing.
        file = tmp_path / f"journal-{cut}"
        file.write_bytes(whole[:cut] + tail)
        journal = JournalFile(file, BATCH)
        numbers = [found.number for found in journal.repair()]
        kept = sum(end <= cut for end in ends)
        if tail == b"\n" and cut + 1 in ends:
            kept += 1
        assert numbers == [0, 3, 1][:kept]
        assert file.read_bytes() == b"".join(LINES[:kept])
        if cut % 20 == 0:
            journal.append(result(7))
            assert [found.number for found in journal.repair()] == [*numbers, 7]
            journal.close()
        file.unlink()


def test_a_line_of_another_batch_or_of_none_is_not_whole() -> None:
    assert read_result(BATCH, result(5)) is not None
    assert read_result(BATCH, result(5, batch_id=OTHER)) is None
    assert read_result(BATCH, result(5)[:-1]) is None
    for number in (0, 1, 255, 50_000, 2**24 - 1, 2**24, 2**40):
        assert line_number(BATCH, result_id(BATCH, number)) == number
    for wrong in ("", "batch_req_", result_id(BATCH, 5)[:-6] + "-00001", "batch_req_" + "z" * 22):
        with pytest.raises(ValueError, match=r"batch_req_|literal|^$"):
            line_number(BATCH, wrong)


def test_what_is_done_is_told_from_both_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "b", BATCH)
    done, _ = journal.recover(6)
    assert done.lines == bytearray(6)
    journal.output.append(result(4) + result(0))
    journal.errors.append(result(2) + result(5, was_tried=False))
    journal.close()
    done, usage = Journal(tmp_path / "b", BATCH).recover(6)
    assert done.lines == bytearray([1, 0, 1, 0, 1, 1])
    assert (done.completed, done.failed) == (2, 1)
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (2, 4, 6)


def test_results_beyond_the_input_are_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BATCH)
    journal.recover(1)
    journal.output.append(result(0) + result(9))
    journal.close()
    done, _ = journal.recover(1)
    assert done.completed == 1


@pytest.mark.parametrize("name", ["pwrite", "fdatasync"])
def test_an_append_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / "journal"
    journal = JournalFile(file, BATCH)
    journal.append(result(0))
    real = os.pwrite

    def half(descriptor: int, *given: object) -> int:
        if name == "pwrite":
            real(descriptor, bytes(given[0])[:9], given[1])  # type: ignore[arg-type, call-overload]
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, half)
        with pytest.raises(OSError, match="No space"):
            journal.append(result(1))
    assert file.read_bytes() == result(0)
    journal.append(result(2))
    assert file.read_bytes() == result(0) + result(2)
    journal.close()


def test_a_new_file_survives_only_with_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is synced, too, also when that failed the first time."""
    synced: list[str] = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        if len(synced) == 1:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    journal = JournalFile(tmp_path / "journal", BATCH)
    with pytest.raises(OSError, match="Input"):
        journal.append(result(0))
    journal.append(result(0))
    journal.close()
    assert synced == [str(tmp_path)] * 2
