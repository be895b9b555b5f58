import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "quickstart"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "unknown option --bogus"),
        (["--home"], "--home needs a value"),
        (["--port", "0"], "from 1 to 65535"),
        (["--port", "65536"], "from 1 to 65535"),
        (["--port", "http"], "from 1 to 65535"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--check" in done.stdout


def test_stop_without_a_server(tmp_path: Path) -> None:
    done = run("--home", str(tmp_path), "--stop")
    assert done.returncode == 0
    assert "no server" in done.stdout


def test_taken_port_names_its_owner(tmp_path: Path) -> None:
    (tmp_path / "state/engines/x").mkdir(parents=True)
    (tmp_path / "state/engines/x/environment.json").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--home", str(tmp_path), "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} is taken by process" in done.stderr
    assert f"--port {port + 1}" in done.stderr
