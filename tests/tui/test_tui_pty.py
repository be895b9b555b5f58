"""The real program in a real terminal against a server on a socket."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tui_fake_server import FakeServer
from tui_pty import ROOT, Terminal

RESTORED = (b"\x1b[?1049l", b"\x1b[?25h")
"""The normal screen, and the cursor."""
INJECTED = (b"OWNED", b"\x1b]0;", b"\x1b]52;", b"\x9b5m", b"\x1bP1$r", "\u202e".encode())


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "admin.sock")


@pytest.fixture
async def server(socket: str, request: pytest.FixtureRequest) -> AsyncIterator[FakeServer]:
    server = FakeServer(getattr(request, "param", "idle"))
    await server.start(socket)
    yield server
    await server.stop()


@pytest.fixture
def terminal(socket: str, server: FakeServer) -> Iterator[Terminal]:
    terminal = Terminal("--socket", socket)
    yield terminal
    terminal.close()


async def run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tui", *arguments, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_it_starts_is_silent_when_nothing_changes_and_ends_cleanly(
    terminal: Terminal, server: FakeServer
) -> None:
    await terminal.until("LIVE")
    await terminal.collect(1.0)
    idle = await terminal.collect(1.5)
    assert len(idle) < 200, idle
    terminal.write("q")
    assert await terminal.ended() == 0
    for sequence in RESTORED:
        assert sequence in terminal.raw[-400:]


async def test_the_terminal_is_restored_after_sigterm(
    terminal: Terminal, server: FakeServer
) -> None:
    await terminal.until("LIVE")
    terminal.signal(signal.SIGTERM)
    await terminal.ended()
    for sequence in RESTORED:
        assert sequence in terminal.raw[-600:]


async def test_it_ends_when_its_terminal_is_gone(terminal: Terminal, server: FakeServer) -> None:
    await terminal.until("LIVE")
    terminal.hang_up()
    assert await terminal.ended() == 128 + signal.SIGHUP


async def test_it_ends_when_its_terminal_is_gone_while_it_is_stopped(
    terminal: Terminal, server: FakeServer
) -> None:
    # The kernel wakes it with SIGCONT as well, and Textual then begins to draw.
    await terminal.until("LIVE")
    terminal.signal(signal.SIGSTOP)
    terminal.hang_up()
    assert await terminal.ended() == 128 + signal.SIGHUP


@pytest.mark.parametrize("server", ["hostile"], indirect=True)
async def test_nothing_of_what_others_wrote_reaches_the_terminal_raw(
    terminal: Terminal, server: FakeServer
) -> None:
    await terminal.until("LIVE")
    terminal.write("\r")
    await terminal.until("of its log")
    terminal.write("l")
    await terminal.until("PAUSED")
    await terminal.collect(0.5)
    terminal.write("1")
    await terminal.collect(0.3)
    terminal.write("x")
    await terminal.until("command line")
    terminal.write("\x1b")
    await terminal.collect(0.3)
    terminal.write("U")
    await terminal.until("Unload")
    await terminal.collect(0.3)
    assert b"[bold]" in terminal.raw
    # Textual itself restores the title at the end, so look before quitting.
    assert not [bad for bad in INJECTED if bad in terminal.raw]


async def test_a_busy_dashboard_stays_within_its_budget(socket: str) -> None:
    server = FakeServer("busy")
    await server.start(socket)
    terminal = Terminal("--socket", socket)
    try:
        await terminal.until("LIVE")
        await terminal.collect(1.0)
        painted = await terminal.collect(2.5)
        assert len(painted) / 2.5 < 4000
    finally:
        terminal.close()
        await server.stop()


async def test_once_as_text_and_json(socket: str, server: FakeServer) -> None:
    code, out, _ = await run("--socket", socket, "--once")
    assert code == 0
    assert re.search(r"gemma3-27b +loading +2 .*weights 64%, 0:38 left", out)
    code, out, _ = await run("--socket", socket, "--once", "--json")
    assert code == 0
    assert '"host": "gpu-box-01"' in out


@pytest.mark.parametrize("server", ["hostile"], indirect=True)
async def test_once_is_clean_too(socket: str, server: FakeServer) -> None:
    _, out, _ = await run("--socket", socket)
    assert "\x1b" not in out
    assert "[bold]" in out


async def test_without_a_server_it_says_what_to_do(tmp_path: Path) -> None:
    code, out, err = await run("--socket", str(tmp_path / "none.sock"))
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert "No such file" in err
    assert "appliance serve" in err
    assert "systemctl status vllm-appliance" in err


@pytest.mark.parametrize(
    "arguments", [["--once"], ["--once", "--json"], ["--readonly"], ["--ascii"], ["--json"]]
)
async def test_flags_work_after_the_socket(
    socket: str, server: FakeServer, arguments: list[str]
) -> None:
    code, out, _ = await run("--socket", socket, *arguments)
    assert code == 0
    assert "gpu-box-01" in out


async def test_help_names_the_command_that_people_type() -> None:
    code, out, _ = await run("--socket", "/nonexistent", "--help")
    assert code == 0
    assert out.startswith("usage: appliance tui ")
