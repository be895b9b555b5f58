"""The `appliance` command, as a person runs it."""

import subprocess
import sys

from tests.support.server import ServerProcess


def appliance(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """Its answer, from the server's own home; nothing is typed."""
    return subprocess.run(
        [sys.executable, "-m", "appliance", *words],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
