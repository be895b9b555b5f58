"""Pulls of a server, as its management API shows them."""

from pathlib import Path
from typing import Any

from tests.support.server import ServerProcess
from tests.support.wait import wait_until

REPO = "acme/small"
SOON_S = 60.0


def pull(server: ServerProcess, repo: str = REPO, **body: Any) -> str:
    """Asked for; its id."""
    response = server.admin("POST", "/pulls", {"repo": repo, **body})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def view(server: ServerProcess, pull_id: str) -> dict[str, Any]:
    """As it is now."""
    return dict(server.admin("GET", f"/pulls/{pull_id}").json())


def act(server: ServerProcess, pull_id: str, action: str) -> dict[str, Any]:
    """As it is after that."""
    response = server.admin("POST", f"/pulls/{pull_id}/{action}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def until(server: ServerProcess, pull_id: str, state: str) -> dict[str, Any]:
    """The pull, once it is in that state; fails at once if it never will be."""

    def there() -> dict[str, Any] | None:
        now = view(server, pull_id)
        if now["state"] == state:
            return now
        assert now["state"] in {"queued", "running"}, now
        return None

    found = wait_until(there, SOON_S, f"pull {state}")
    assert found is not None
    return found


def fetching_processes(server: ServerProcess) -> list[int]:
    """Children of the server that fetch."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [
        int(pid)
        for pid in children.read_text().split()
        if b"appliance.hub.fetch" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def known_models(server: ServerProcess) -> list[str]:
    """Their ids."""
    return [model["id"] for model in server.admin("GET", "/models").json()]


def until_done(server: ServerProcess, pull_id: str, done_bytes: int) -> None:
    """Until so much of it is on the disk."""
    wait_until(lambda: view(server, pull_id)["done_bytes"] >= done_bytes, SOON_S)


def wait_until_gone(pid: int) -> None:
    """Until the process has ended."""
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
