import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.engine import warm_check
from appliance.engine.environments import EnvironmentRecord, EnvironmentStore, packages_stamp
from appliance.engine.trial import Answer, TrialError, TrialResult
from appliance.engine.warm_check import (
    check_warm_start,
    compare,
    describe,
    is_prepared,
    prepare_starts,
)
from appliance.protocol.launchers import Launcher, LauncherState
from appliance.protocol.system import WarmOutcome, WarmStart

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
LAUNCHER_PID = 4242


def make_answer(*, last: str = "b", logprob: float = -0.5, other: float = -2.0) -> Answer:
    return Answer(
        tokens=["a", last],
        token_logprobs=[-0.25, logprob],
        top_logprobs=[{"a": -0.25}, {last: logprob, "c": other}],
    )


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        (make_answer(), ""),
        (make_answer(last="x"), "other tokens"),
        (make_answer(logprob=-0.5001), "off by up to 0.0001"),
        (make_answer(other=-2.1), "weighed other tokens"),
    ],
)
def test_comparison_is_exact(answer: Answer, difference: str) -> None:
    found = compare(make_answer(), answer)
    assert difference in found
    assert bool(found) == bool(difference)


def make_check(outcome: WarmOutcome, reason: str = "") -> WarmStart:
    return WarmStart(
        outcome=outcome,
        checked_at=NOW,
        packages="x",
        reason=reason,
        plain_s=16.2,
        warm_s=1.04,
    )


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (None, "plain starts (not checked: appliance engine check)"),
        (make_check(WarmOutcome.SAME), "warm starts: 16 s -> 1.0 s"),
        (make_check(WarmOutcome.DIFFERS, "other tokens"), "plain starts (other tokens)"),
        (make_check(WarmOutcome.FAILED), "plain starts (failed)"),
    ],
)
def test_words(check: WarmStart | None, text: str) -> None:
    assert describe(check) == text


class FakeTrials:
    """Answers without engines; a name in `broken` does not start."""

    def __init__(self, *_: Any) -> None:
        pass

    broken = ""
    problem = ""
    parent = LAUNCHER_PID
    forked = make_answer()

    async def launcher(self, modules: list[str]) -> "FakeTrials":
        assert modules
        return self

    def view(self) -> Launcher:
        if self.problem:
            return Launcher(environment="a", state=LauncherState.FAILED, problem=self.problem)
        return Launcher(environment="a", state=LauncherState.WARM, pid=LAUNCHER_PID)

    async def run(self, name: str, launcher: object = None) -> TrialResult:
        await asyncio.sleep(0)
        if name == self.broken:
            raise TrialError("the engine ended")
        if launcher is None:
            return TrialResult(ready_s=16.0, answer=make_answer(), parent=1)
        return TrialResult(ready_s=1.0, answer=self.forked, parent=self.parent)

    async def stop(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnvironmentStore:
    """One environment that looks complete; the tiny model is never made."""
    store = EnvironmentStore(tmp_path / "engines")
    record = EnvironmentRecord(
        name="a",
        platform="cpu",
        vllm_version="0.32.0",
        torch_version="2.13.0+cpu",
        python_version="3.11.2",
        launch=[str(store.directory("a") / "bin/python"), "-m", "x"],
        flags=[],
        size_bytes=0,
        created_at=NOW,
        has_sleep_mode=False,
    )
    store.add(record)
    monkeypatch.setattr(warm_check, "make_tiny_model", lambda *_: None)
    monkeypatch.setattr(warm_check, "_Trials", FakeTrials)
    return store


def check(store: EnvironmentStore, tmp_path: Path) -> WarmStart:
    return check_warm_start(store.get("a"), cache=tmp_path / "cache", report=lambda _: None)


def test_same_answers(store: EnvironmentStore, tmp_path: Path) -> None:
    found = check(store, tmp_path)
    assert (found.outcome, found.plain_s, found.warm_s) == (WarmOutcome.SAME, 16.0, 1.0)
    assert found.packages == packages_stamp(store.directory("a"))


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        ({"forked": make_answer(last="x")}, WarmOutcome.DIFFERS, "chose other tokens"),
        ({"broken": "plain"}, WarmOutcome.FAILED, "the engine ended"),
        ({"broken": "forked"}, WarmOutcome.FAILED, "the engine ended"),
        ({"problem": "2 threads run"}, WarmOutcome.FAILED, "2 threads run"),
        ({"parent": 1}, WarmOutcome.FAILED, "could not fork"),
    ],
)
def test_everything_else_stays_plain(
    store: EnvironmentStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    outcome: WarmOutcome,
    reason: str,
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(FakeTrials, name, value)
    found = check(store, tmp_path)
    assert found.outcome is outcome
    assert reason in found.reason


def test_unknown_build(store: EnvironmentStore, tmp_path: Path) -> None:
    store.add(msgspec.structs.replace(store.get("a"), vllm_version="9.9.9"))
    found = check(store, tmp_path)
    assert found.outcome is WarmOutcome.UNSUPPORTED
    assert "vLLM 9.9.9 for cpu" in found.reason


def test_what_is_prepared_is_not_prepared_again(store: EnvironmentStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    # There is no Python to inspect architectures with, which is no failure.
    (cache / "vllm/a/modelinfos").mkdir(parents=True)
    (cache / "vllm/a/modelinfos/.all").touch()
    assert not is_prepared(store.get("a"), cache)
    lines: list[str] = []
    record = prepare_starts(store, store.get("a"), cache=cache, report=lines.append)
    assert lines[-1] == "a: warm starts: 16 s -> 1.0 s"
    assert is_prepared(store.get("a"), cache)

    lines.clear()
    assert prepare_starts(store, record, cache=cache, report=lines.append) == record
    assert lines == []
    prepare_starts(store, record, cache=cache, again=True, report=lines.append)
    assert lines != []
