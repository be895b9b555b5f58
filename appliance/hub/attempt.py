"""One try of one pull: list the repository if that is still to be done, check the disk, fetch."""

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from appliance.hub.cache import RepoCache, free_bytes, unique
from appliance.hub.messages import Fetched, Going, Listed, Message, Order, Stopped, Verified
from appliance.hub.process import FetchProcess
from appliance.hub.progress import Patience, Rate, gone_on, verified
from appliance.hub.space import disk_short
from appliance.protocol.pulls import Pull, PullCause, PullPhase, PullProblem, PullState
from appliance.store.pulls import StoredPull

Clock = Callable[[], float]


class AttemptFailedError(Exception):
    """It cannot go on."""

    def __init__(self, problem: PullProblem, *, is_transient: bool = False) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.is_transient = is_transient


class AttemptStoppedError(Exception):
    """Somebody asked for it with `Attempt.stop`."""


class Attempt:
    """Owner of the pull while it runs; `stored` is how far it is."""

    def __init__(
        self,
        stored: StoredPull,
        *,
        make_order: Callable[[], Order],
        promised_bytes: Callable[[], int],
        changed: Callable[["Attempt"], Awaitable[None]],
        gone_on: Callable[["Attempt"], None],
        patience: Patience,
        clock: Clock,
    ) -> None:
        self.stored = stored
        self.stops_as: PullState | None = None
        """What it becomes, once somebody has asked for a stop."""
        self._make_order = make_order
        self._promised_bytes = promised_bytes
        self._changed = changed
        self._gone_on = gone_on
        self._patience = patience
        self._clock = clock
        self._rate = Rate()
        self._process: FetchProcess | None = None

    @property
    def pull(self) -> Pull:
        """As it is now."""
        return self.stored.pull

    @property
    def promised_bytes(self) -> int:
        """What it will still write; 0 until it was found to fit."""
        is_fetching = self.pull.phase is PullPhase.FETCHING
        return self.pull.total_bytes - self.pull.done_bytes if is_fetching else 0

    def stop(self, state: PullState) -> None:
        """Kill the process; the pull becomes `state`, unless it is over before."""
        self.stops_as = state
        if self._process is not None:
            self._process.kill()

    async def run(self) -> Path:
        """The directory of the checkpoint. Raises AttemptFailedError and AttemptStoppedError."""
        if importlib.util.find_spec("huggingface_hub") is None:
            raise _failed(
                PullCause.UNSUPPORTED,
                "This server was installed without the client for the hub.",
                "pip install 'vllm-appliance[hub]' in its environment, and resume the pull.",
            )
        order = await asyncio.to_thread(self._make_order)
        if not self.stored.files:
            await self.set(phase=PullPhase.LISTING)
            await self._follow(order)
        await self._check_space(order)
        result = await self._follow(
            msgspec.structs.replace(order, commit=self.pull.commit, files=self.stored.files)
        )
        assert isinstance(result, Fetched)
        return Path(result.path)

    async def set(self, **changes: object) -> None:
        """Change the pull; it is stored and told at once."""
        pull = msgspec.structs.replace(self.pull, **changes)
        self.stored = msgspec.structs.replace(self.stored, pull=pull)
        await self._changed(self)

    async def _follow(self, order: Order) -> Message:
        """The last thing that the process says."""
        if self.stops_as is not None:
            raise AttemptStoppedError
        last: Message | None = None
        process = self._process = FetchProcess(order)
        try:
            async with aclosing(process.messages()) as messages:
                async for message in messages:
                    await self._take(message)
                    last = message
        except OSError as error:
            raise _failed(
                PullCause.INTERNAL, f"No process can be started: {error}", "Resume the pull later."
            ) from error
        if isinstance(last, Listed | Fetched):
            return last
        if self.stops_as is not None:
            raise AttemptStoppedError
        if isinstance(last, Stopped):
            raise AttemptFailedError(last.problem, is_transient=last.is_transient)
        problem = PullProblem(
            cause=PullCause.INTERNAL,
            message="The process that fetches was killed."
            if process.died_by_signal
            else "The process that fetches ended without a word.",
            hint="Mostly memory was short; the kernel's log says so (dmesg)."
            if process.died_by_signal
            else "The server's log may hold its last words. Resume the pull.",
        )
        raise AttemptFailedError(problem, is_transient=process.died_by_signal)

    async def _take(self, message: Message) -> None:
        match message:
            case Listed(commit=commit, files=files):
                self.stored = msgspec.structs.replace(self.stored, files=files)
                await self.set(
                    commit=commit,
                    files_total=len(files),
                    total_bytes=sum(file.size_bytes for file in unique(files)),
                )
            case Verified(path=path):
                files = verified(self.stored.files, path)
                self.stored = msgspec.structs.replace(self.stored, files=files)
                await self.set(files_done=sum(file.is_verified for file in files))
            case Going():
                now = self._clock()
                self._rate.add(now, message.received_bytes)
                if message.received_bytes:
                    self._patience.have(now, message.done_bytes)
                pull = gone_on(self.pull, message, self._rate.per_s())
                self.stored = msgspec.structs.replace(self.stored, pull=pull)
                self._gone_on(self)
            case _:
                pass

    async def _check_space(self, order: Order) -> None:
        cache = RepoCache(root=Path(order.cache), repo=self.pull.repo)
        files = self.stored.files
        try:
            missing = await asyncio.to_thread(cache.missing_bytes, files)
            free = await asyncio.to_thread(free_bytes, cache.root)
        except OSError as error:
            raise _failed(
                PullCause.CANNOT_WRITE,
                f"The cache {cache.root} cannot be read: {error}",
                "Check its owner and rights, or set `pulls.cache`.",
            ) from error
        # From here to the new phase nothing is awaited: two that fit one by one do not both pass.
        done = self.pull.total_bytes - missing
        need = missing + self._promised_bytes()
        if missing and free - need < order.reserve_bytes:
            await self.set(done_bytes=done)
            raise AttemptFailedError(disk_short(need, free, order.reserve_bytes))
        await self.set(done_bytes=done, phase=PullPhase.FETCHING)


def _failed(cause: PullCause, message: str, hint: str) -> AttemptFailedError:
    return AttemptFailedError(PullProblem(cause=cause, message=message, hint=hint))
