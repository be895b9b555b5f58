"""A real server process in a home of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from appliance.config.paths import find_paths
from tests.support.wait import wait_until

READY_S = 30.0
LOAD_S = 180.0


class ServerProcess:
    """`appliance serve`; the port is free, the home is temporary."""

    def __init__(self, home: Path, config: str = "", *, engines: Path | None = None) -> None:
        self.home = home
        self.env = {
            **{key: value for key, value in os.environ.items() if "APPLIANCE" not in key},
            "APPLIANCE_HOME": str(home),
            "APPLIANCE_SERVER_PORT": "0",
        }
        self.paths = find_paths(self.env)
        self.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
        self.paths.config_file.write_text(config)
        self.paths.state.mkdir(parents=True, exist_ok=True)
        if engines is not None:
            (self.paths.state / "engines").symlink_to(engines)
            # What vLLM found out about architectures belongs to its environment, not to a home.
            cache = engines.parent.parent / "cache/vllm"
            if cache.is_dir():
                self.paths.cache.mkdir(parents=True, exist_ok=True)
                (self.paths.cache / "vllm").symlink_to(cache)
        self.log = home / "server.log"
        self.prefix: list[str] = []
        """A command that starts the server as its own process."""
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self._admin: httpx.Client | None = None

    def start(self, *arguments: str) -> "ServerProcess":
        """Start and wait until it takes requests."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "appliance", "serve", *arguments],
                env=self.env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(self._is_ready, READY_S, "server ready")
        self.url = self.state()["server"]["listen"]
        return self

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self._close()
        return status

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self._close()

    def end(self) -> None:
        """Whatever its state, leave nothing."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()

    def admin(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """A call of the management API over its socket."""
        if self._admin is None:
            transport = httpx.HTTPTransport(uds=str(self.paths.admin_socket))
            self._admin = httpx.Client(
                transport=transport, base_url="http://appliance/admin/v1", timeout=60
            )
        return self._admin.request(method, path, json=body)

    def state(self) -> dict[str, Any]:
        """The snapshot."""
        response = self.admin("GET", "/state")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def model(self, model: str) -> dict[str, Any]:
        """One model."""
        return dict(self.admin("GET", f"/models/{model}").json())

    def add_model(self, model: str, path: Path, **settings: Any) -> None:
        """Register a model."""
        response = self.admin("POST", "/models", {"id": model, "path": str(path), **settings})
        assert response.status_code == 201, response.text

    def load(self, model: str, timeout_s: float = LOAD_S) -> None:
        """Load and wait until it is ready."""
        assert self.admin("POST", f"/models/{model}/load").status_code == 202

        def is_ready() -> bool:
            now = self.model(model)
            assert now["state"] != "failed", now["failure"]
            return bool(now["state"] == "ready")

        wait_until(is_ready, timeout_s, f"{model} ready")

    def events(self) -> Iterator[dict[str, Any]]:
        """The event stream, from a snapshot on."""
        transport = httpx.HTTPTransport(uds=str(self.paths.admin_socket))
        with (
            httpx.Client(transport=transport, base_url="http://appliance", timeout=60) as client,
            client.stream("GET", "/admin/v1/events") as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    def engine_pids(self) -> list[int]:
        """Sessions of the engines that the server knows."""
        return [
            engine["pid"]
            for engine in self.state()["engines"]
            if engine["state"] not in {"stopped", "failed"} and engine["pid"]
        ]

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.paths.admin_socket)):
                return False
        try:
            return self.admin("GET", "/state").status_code == 200
        except httpx.HTTPError:
            return False

    def _close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
