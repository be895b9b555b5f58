"""Compares a forked engine with one that was started in the plain way, once for an environment.

Both answer the same request with the same tiny model. Only if tokens and log-probabilities are
identical may engines of this environment be forked; with any other outcome starts stay plain.
"""

import asyncio
import os
import secrets
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from appliance.engine.command import EngineSpec, build_base_env
from appliance.engine.environments import (
    EnvironmentRecord,
    EnvironmentStore,
    packages_stamp,
    preload_modules,
)
from appliance.engine.model_infos import has_model_infos, inspect_models
from appliance.engine.pip_run import Report
from appliance.engine.proctree import proportional_bytes
from appliance.engine.tiny_model import make_tiny_model
from appliance.engine.trial import Answer, TrialError, TrialResult, run_trial
from appliance.engine.warm_launcher import WarmLauncher
from appliance.errors import EngineEnvironmentError
from appliance.gpu.nvml_reader import NvmlReader
from appliance.protocol.devices import DeviceKind
from appliance.protocol.launchers import LauncherState
from appliance.protocol.models import ModelSettings, Task
from appliance.protocol.system import WarmOutcome, WarmStart
from appliance.units import GIB, MIB, format_duration, format_size

_MODEL = "tiny"
_CONTEXT = 512
_KV_CACHE_BYTES = 64 * MIB
_NEED_BYTES = 3 * GIB


@dataclass(frozen=True, kw_only=True)
class _Device:
    kind: DeviceKind
    index: int = 0
    total_bytes: int = 0


def is_prepared(environment: EnvironmentRecord, cache: Path) -> bool:
    """Whether `prepare_starts` has nothing to do."""
    return has_model_infos(environment, cache) and not needs_check(environment)


def needs_check(environment: EnvironmentRecord) -> bool:
    """Whether there is no check that holds; one for which something was missing is tried again."""
    check = environment.warm_start
    if check is None or check.outcome is WarmOutcome.UNSUPPORTED:
        return True
    return check.packages != packages_stamp(environment.directory)


def prepare_starts(
    store: EnvironmentStore,
    environment: EnvironmentRecord,
    *,
    cache: Path,
    again: bool = False,
    report: Report,
) -> EnvironmentRecord:
    """Have vLLM inspect its architectures, check warm starts, note it in the manifest.

    Each where it was not done before. No failure: without a good outcome starts are plain.
    """
    if not has_model_infos(environment, cache):
        report("having vLLM look at all of its architectures, so that no first start has to")
        inspect_models(environment, cache)
    if not (again or needs_check(environment)):
        return environment
    check = check_warm_start(environment, cache=cache, report=report)
    report(f"{environment.name}: {describe(check)}")
    return store.note_warm_start(environment.name, check)


def describe(check: WarmStart | None) -> str:
    """The outcome in a few words: `warm starts: 16 s -> 1.0 s`."""
    if check is None:
        return "plain starts (not checked: appliance engine check)"
    if check.outcome is not WarmOutcome.SAME:
        return f"plain starts ({check.reason or check.outcome})"
    plain, warm = (format_duration(seconds or 0.0) for seconds in (check.plain_s, check.warm_s))
    return f"warm starts: {plain} -> {warm}"


def check_warm_start(environment: EnvironmentRecord, *, cache: Path, report: Report) -> WarmStart:
    """Make a tiny model, start it both ways, compare: about a minute. Never raises for engines."""
    empty = WarmStart(
        outcome=WarmOutcome.UNSUPPORTED,
        checked_at=datetime.now(UTC),
        packages=packages_stamp(environment.directory),
    )
    modules = preload_modules(environment)
    if modules is None:
        build = f"vLLM {environment.vllm_version} for {environment.platform}"
        return replace(empty, reason=f"no list of modules for {build}")
    device = _find_device(environment.platform)
    if device is None:
        return replace(empty, reason=f"no GPU with {format_size(_NEED_BYTES)} free for the check")
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            report("checking warm starts: making a tiny model")
            python = environment.directory / "bin" / "python"
            make_tiny_model(python, Path(folder) / _MODEL)
            trials = _Trials(environment, device, Path(folder), cache)
            return asyncio.run(_compare(trials, modules, empty, report))
        except (OSError, EngineEnvironmentError, TrialError) as error:
            return replace(empty, outcome=WarmOutcome.FAILED, reason=str(error).rstrip("."))


async def _compare(
    trials: "_Trials", modules: list[str], empty: WarmStart, report: Report
) -> WarmStart:
    report("checking warm starts: starting it in the plain way")
    plain = await trials.run("plain")
    report("checking warm starts: starting it from a process that has imported vLLM")
    launcher = await trials.launcher(modules)
    try:
        view = launcher.view()
        if view.pid is None:
            raise TrialError(f"the launcher: {view.problem}")
        warm = await trials.run("forked", launcher)
        launcher_bytes = await asyncio.to_thread(proportional_bytes, view.pid)
    finally:
        await launcher.stop()
    if warm.parent != view.pid:
        raise TrialError("the launcher could not fork the engine")
    difference = compare(plain.answer, warm.answer)
    return replace(
        empty,
        outcome=WarmOutcome.DIFFERS if difference else WarmOutcome.SAME,
        reason=difference,
        plain_s=round(plain.ready_s, 2),
        warm_s=round(warm.ready_s, 2),
        launcher_bytes=launcher_bytes,
    )


def compare(plain: Answer, forked: Answer) -> str:
    """What is not identical; empty: all is (pure)."""
    if plain.tokens != forked.tokens:
        return "the forked engine chose other tokens"
    if plain.token_logprobs != forked.token_logprobs:
        pairs = zip(plain.token_logprobs, forked.token_logprobs, strict=True)
        most = max(abs(one - other) for one, other in pairs)
        return f"the forked engine's log-probabilities are off by up to {most:.2g}"
    if plain.top_logprobs != forked.top_logprobs:
        return "the forked engine weighed other tokens"
    return ""


class _Trials:
    """Starts of the tiny model, alike in all but the way."""

    def __init__(
        self, environment: EnvironmentRecord, device: _Device, folder: Path, cache: Path
    ) -> None:
        self._environment = environment
        self._device = device
        self._folder = folder
        self._cache = cache

    async def launcher(self, modules: list[str]) -> WarmLauncher:
        """A launcher that has imported, or has failed."""
        changed = asyncio.Event()
        launcher = WarmLauncher(self._environment, modules, on_change=changed.set)
        env = build_base_env(self._device.kind, self._environment, self._cache, os.environ)
        launcher.begin(env)
        while launcher.view().state is LauncherState.WARMING:
            await changed.wait()
            changed.clear()
        return launcher

    async def run(self, name: str, launcher: WarmLauncher | None = None) -> TrialResult:
        """Start, ask, end. Raises TrialError."""
        spec = EngineSpec(
            engine_id=f"check_{secrets.token_hex(8)}",
            model=_MODEL,
            settings=ModelSettings(path=str(self._folder / _MODEL), task=Task.GENERATE),
            context_length=_CONTEXT,
            kv_cache_bytes=_KV_CACHE_BYTES,
            need_bytes=_NEED_BYTES,
            weights_bytes=0,
            device_kind=self._device.kind,
            device_indices=(self._device.index,),
            device_bytes=self._device.total_bytes,
            cpu_cores=tuple(sorted(os.sched_getaffinity(0))),
            socket=self._folder / f"{name}.sock",
            cache=self._cache,
        )
        log = self._folder / f"{name}.log"
        try:
            return await run_trial(spec, self._environment, log, launcher)
        except TrialError as error:
            raise TrialError(f"the {name} start of the check: {error}") from error


def _find_device(platform: str) -> _Device | None:
    if platform == "cpu":
        return _Device(kind=DeviceKind.CPU)
    reader = NvmlReader.open()
    if reader is None:
        return None
    try:
        usable = [reading for reading in reader.read() if reading.problem is None]
    finally:
        reader.close()
    best = max(usable, key=lambda reading: reading.available_bytes or 0, default=None)
    if best is None or (best.available_bytes or 0) < _NEED_BYTES:
        return None
    return _Device(kind=DeviceKind.GPU, index=best.index, total_bytes=best.total_bytes)
