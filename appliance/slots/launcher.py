"""From a decision to an engine: specification, environment, log file, supervisor."""

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from appliance.config.paths import Paths
from appliance.config.settings import EngineSettings
from appliance.engine.command import EngineSpec
from appliance.engine.environments import EnvironmentRecord, EnvironmentStore
from appliance.engine.logs import remove_log
from appliance.engine.spawner import EngineSpawner
from appliance.engine.supervisor import EngineLimits, EngineSupervisor
from appliance.estimate.estimator import Estimate
from appliance.protocol.devices import DeviceKind
from appliance.protocol.events import Event
from appliance.registry.registry import KnownModel
from appliance.slots.history import LoadHistory, fingerprint
from appliance.slots.plans import DeviceRoom
from appliance.slots.views import placement_of

# vLLM puts sockets with names of 36 letters there; a path of a socket has at most 107 (unix(7)).
_LONGEST_TEMPORARY = 66


class EngineLauncher:
    """Prepares engines on this machine."""

    def __init__(
        self,
        *,
        paths: Paths,
        settings: EngineSettings,
        environments: EnvironmentStore,
        history: LoadHistory,
        spawner: EngineSpawner,
        publish: Callable[[Event], None],
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._environments = environments
        self._history = history
        self._spawner = spawner
        self._publish = publish

    def environment(self, known: KnownModel) -> EnvironmentRecord:
        """The engine environment that the model gets. Raises EngineEnvironmentError."""
        return self._environments.get(known.settings.environment or self._settings.environment)

    def fingerprint(self, known: KnownModel, environment: EnvironmentRecord) -> str:
        """The configuration whose loads are comparable."""
        return fingerprint(known.id, known.settings, environment.name, known.context_length)

    def prepare(
        self,
        known: KnownModel,
        rooms: Sequence[DeviceRoom],
        kind: DeviceKind,
        estimate: Estimate,
        attempts: int,
        *,
        keep_logs_of: Collection[str] = (),
    ) -> EngineSupervisor:
        """An engine that is ready to run on these devices. Raises EngineEnvironmentError.

        `keep_logs_of` are engines whose logs are still of use.
        """
        known = known.split_over(len(rooms))
        environment = self.environment(known)
        engine_id = f"eng_{secrets.token_hex(8)}"
        spec = EngineSpec(
            engine_id=engine_id,
            model=known.id,
            settings=known.settings,
            context_length=known.context_length,
            kv_cache_bytes=estimate.kv_cache_bytes,
            need_bytes=estimate.total_bytes,
            sequences=estimate.sequences,
            step_tokens=estimate.step_tokens,
            weights_bytes=known.facts.weights_bytes if known.facts else 0,
            device_kind=kind,
            device_indices=tuple(room.visible_as or room.index for room in rooms),
            device_bytes=min(room.total_bytes for room in rooms),
            cpu_cores=tuple(sorted(os.sched_getaffinity(0))),
            socket=self._paths.engine_records / f"{engine_id}.sock",
            cache=self._paths.cache,
            temporary=_temporary(engine_id),
        )
        return EngineSupervisor(
            spec,
            placement_of(rooms, estimate),
            environment,
            log_file=self._log_file(known.id, engine_id, keep_logs_of),
            log_bytes=self._settings.log_size_bytes,
            limits=EngineLimits(
                stall_s=self._settings.stall_timeout_s,
                stop_s=self._settings.stop_timeout_s,
                frozen_s=self._settings.frozen_timeout_s,
                hang_s=self._settings.hang_timeout_s,
                sleep_s=self._settings.sleep_timeout_s,
            ),
            spawner=self._spawner,
            earlier_loads=self._history.of(self.fingerprint(known, environment)),
            attempts=attempts,
            publish=self._publish,
        )

    def _log_file(self, model: str, engine_id: str, keep: Collection[str]) -> Path:
        """A new log; the oldest ones of the model go, but for those of the engines in `keep`."""
        digest = hashlib.sha256(model.encode()).hexdigest()[:6]
        slug = f"{re.sub(r'[^A-Za-z0-9._-]', '_', model)}.{digest}"
        directory = self._paths.engine_logs
        old = sorted(directory.glob(f"{slug}.eng_*.log"), key=lambda file: file.stat().st_mtime)
        kept = {f"{slug}.{each}.log" for each in keep}
        may_go = [file for file in old if file.name not in kept]
        for file in may_go[: max(len(old) - self._settings.keep_logs + 1, 0)]:
            remove_log(file)
        return directory / f"{slug}.{engine_id}.log"


def _temporary(engine_id: str) -> Path | None:
    """For files that vLLM leaves behind; None: the name would be too long for its sockets in it."""
    path = Path(tempfile.gettempdir()) / f"va-{engine_id}"
    return path if len(str(path)) <= _LONGEST_TEMPORARY else None
