"""All pulls of a server. Owner: the event loop. See docs/decisions/0010."""

import asyncio
import logging
import secrets
import time
from datetime import UTC, datetime, timedelta

import msgspec

from appliance.errors import (
    ApplianceError,
    ConflictError,
    NotFoundError,
    UnavailableError,
)
from appliance.events import EventBus
from appliance.hub.attempt import Attempt, AttemptFailedError, AttemptStoppedError, Clock
from appliance.hub.cache import RepoCache
from appliance.hub.names import check_repo, check_revision
from appliance.hub.places import Places
from appliance.hub.progress import Patience, at_rest, headline
from appliance.hub.pulled_models import PulledModels
from appliance.protocol.events import PullChanged
from appliance.protocol.pulls import (
    Pull,
    PullCause,
    PullCreate,
    PullFile,
    PullPhase,
    PullProblem,
    PullState,
    without_old,
)
from appliance.registry.registry import check_id
from appliance.store.database import Database, StoreError
from appliance.store.pulls import StoredPull, all_pulls, put_pull

logger = logging.getLogger(__name__)

_TOLD_EVERY_S = 1.0
# A list that led to these is no longer that of the hub.
_LISTED_ANEW = {PullCause.REVISION_NOT_FOUND, PullCause.FILES_CHANGED, PullCause.UNSUPPORTED}


class Pulls:
    """Asks for them, runs so many at once, keeps them through restarts, adds the models."""

    def __init__(
        self,
        *,
        database: Database,
        models: PulledModels,
        bus: EventBus,
        places: Places,
        clock: Clock = time.monotonic,
    ) -> None:
        self._database = database
        self._models = models
        self._bus = bus
        self._places = places
        self._parallel = places.settings.parallel
        self._give_up_s = places.settings.give_up_s
        self._clock = clock
        self._known: dict[str, StoredPull] = {}
        self._attempts: dict[str, Attempt] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._patience: dict[str, Patience] = {}
        self._told_at: dict[str, float] = {}
        self._wakeups: dict[str, asyncio.TimerHandle] = {}
        self._is_working = False

    async def open(self) -> None:
        """Read what earlier servers have left; what ran then is in the queue again."""
        for stored in await self._database.read(all_pulls):
            pull = stored.pull
            if pull.state.is_active:
                pull = at_rest(pull, PullState.QUEUED)
            self._known[pull.id] = msgspec.structs.replace(stored, pull=pull)

    def start(self) -> None:
        """Begin to work."""
        self._is_working = True
        self._dispatch()

    async def stop(self) -> None:
        """Kill what runs; the next server goes on with it."""
        self._is_working = False
        for timer in self._wakeups.values():
            timer.cancel()
        for attempt in self._attempts.values():
            attempt.stop(PullState.QUEUED)
        await asyncio.gather(*self._tasks.values())

    def told(self) -> list[Pull]:
        """All that are shown, oldest first."""
        return [stored.pull for stored in self._known.values()]

    def one(self, pull_id: str) -> Pull:
        """Raises NotFoundError."""
        return self._find(pull_id).pull

    def files(self, pull_id: str) -> list[PullFile]:
        """Its files, once they are known. Raises NotFoundError."""
        stored = self._find(pull_id)
        current = {file.path: file.done_bytes for file in stored.pull.current}
        return [
            msgspec.structs.replace(
                file, done_bytes=file.size_bytes if file.is_verified else current.get(file.path, 0)
            )
            for file in stored.files
        ]

    async def create(self, body: PullCreate) -> Pull:
        """A pull, or the one that is there already: it goes on if it had stopped.

        Raises InvalidRequestError, ConflictError and UnavailableError.
        """
        check_repo(body.repo)
        check_revision(body.revision)
        model = body.name or body.repo
        check_id(model)
        self._models.check_name(model, body.repo)
        for stored in list(self._known.values()):
            pull = stored.pull
            if pull.state.is_final or (pull.repo != body.repo and pull.model != model):
                continue
            if pull.repo != body.repo:
                raise ConflictError(
                    f"{pull.repo} is being pulled already, and gets the name {model!r}.",
                    hint="Choose another name with --name.",
                    param="name",
                )
            if (pull.revision, pull.model) == (body.revision, model):
                return pull if pull.state.is_active else await self.resume(pull.id)
            raise ConflictError(
                f"{body.repo} is being pulled already, with another revision or name.",
                hint=f"Let {pull.id} end, or cancel it: appliance pulls cancel {pull.id}",
                param="repo",
            )
        pull = Pull(
            id=f"pull_{secrets.token_hex(4)}",
            repo=body.repo,
            revision=body.revision,
            model=model,
            state=PullState.QUEUED,
            created_at=datetime.now(UTC),
        )
        self._known[pull.id] = stored = StoredPull(pull=pull)
        try:
            await self._database.write(lambda: put_pull(stored))
        except StoreError as error:
            del self._known[pull.id]
            raise UnavailableError(
                f"The pull cannot be stored: {error}", hint="Mostly the disk is full."
            ) from error
        self._tell(pull)
        self._dispatch()
        return self.one(pull.id)

    async def pause(self, pull_id: str) -> Pull:
        """Stop it where it is. Raises NotFoundError and ConflictError."""
        return await self._halt(pull_id, PullState.PAUSED)

    async def cancel(self, pull_id: str) -> Pull:
        """Give it up, and delete what no checkpoint needs. Raises as `pause`."""
        return await self._halt(pull_id, PullState.CANCELLED)

    async def resume(self, pull_id: str) -> Pull:
        """Go on, or try again at once. Raises NotFoundError and ConflictError."""
        stored = self._find(pull_id)
        pull = stored.pull
        if pull.state.is_final:
            raise _is_over(pull)
        if pull.state is PullState.RUNNING:
            return pull
        if pull.problem is not None and pull.problem.cause in _LISTED_ANEW:
            pull = msgspec.structs.replace(
                pull, commit=None, total_bytes=0, done_bytes=0, files_total=0, files_done=0
            )
            stored = msgspec.structs.replace(stored, files=[])
        self._patience.pop(pull_id, None)
        self._forget_wakeup(pull_id)
        queued = at_rest(pull, PullState.QUEUED)
        await self._keep(msgspec.structs.replace(stored, pull=queued))
        self._dispatch()
        return self.one(pull_id)

    async def _halt(self, pull_id: str, state: PullState) -> Pull:
        self._find(pull_id)
        if (attempt := self._attempts.get(pull_id)) is not None:
            attempt.stop(state)
            # Not awaited itself: a caller that goes away must not cancel it.
            await asyncio.wait([self._tasks[pull_id]])
        stored = self._find(pull_id)
        pull = stored.pull
        if pull.state is state:
            return pull
        if pull.state.is_final or (state is PullState.PAUSED and pull.state is PullState.FAILED):
            raise _is_over(pull)
        self._forget_wakeup(pull_id)
        await self._rest(stored, state)
        self._dispatch()
        return self.one(pull_id)

    async def _rest(self, stored: StoredPull, state: PullState) -> None:
        """Nothing works on it any more."""
        if state is PullState.CANCELLED:
            cache = RepoCache(root=self._places.cache, repo=stored.pull.repo)
            try:
                await asyncio.to_thread(cache.discard, stored.files)
            except OSError as error:
                logger.warning("pull.discard_failed pull=%s error=%s", stored.pull.id, error)
        pull = at_rest(stored.pull, state)
        await self._keep(msgspec.structs.replace(stored, pull=pull))

    def _dispatch(self) -> None:
        """Start what waits for its turn, oldest first."""
        now = datetime.now(UTC)
        for pull_id, stored in self._known.items():
            if not self._is_working or len(self._tasks) >= self._parallel:
                return
            pull = stored.pull
            is_due = pull.retry_at is None or pull.retry_at <= now
            if pull.state is PullState.QUEUED and is_due and pull_id not in self._tasks:
                self._attempts[pull_id] = attempt = self._attempt(stored)
                self._tasks[pull_id] = asyncio.create_task(self._work(attempt), name=pull_id)

    def _attempt(self, stored: StoredPull) -> Attempt:
        pull = stored.pull
        running = msgspec.structs.replace(
            pull, state=PullState.RUNNING, retry_at=None, problem=None
        )
        return Attempt(
            msgspec.structs.replace(stored, pull=running),
            make_order=lambda: self._places.order(pull.repo, pull.revision),
            promised_bytes=lambda: self._promised_bytes(pull.id),
            changed=lambda attempt: self._keep(attempt.stored),
            gone_on=self._gone_on,
            patience=self._patience.setdefault(pull.id, Patience(self._clock())),
            clock=self._clock,
        )

    async def _work(self, attempt: Attempt) -> None:
        try:
            await self._end(attempt)
        except Exception:  # one pull that fails in an unknown way must not stop the others
            logger.exception("pull.failed_unexpectedly pull=%s", attempt.pull.id)
            await self._fail(attempt, AttemptFailedError(_UNEXPECTED))
        finally:
            del self._attempts[attempt.pull.id], self._tasks[attempt.pull.id]
            self._dispatch()

    async def _end(self, attempt: Attempt) -> None:
        try:
            path = await attempt.run()
            await attempt.set(phase=PullPhase.ADDING)
            await self._models.add(attempt.pull.model, attempt.pull.repo, path)
        except AttemptStoppedError:
            await self._rest(attempt.stored, attempt.stops_as or PullState.QUEUED)
        except AttemptFailedError as error:
            await self._fail(attempt, error)
        except ApplianceError as error:
            problem = PullProblem(
                cause=PullCause.CANNOT_ADD, message=error.message, hint=error.hint
            )
            await self._fail(attempt, AttemptFailedError(problem))
        else:
            logger.info("pull.completed pull=%s repo=%s", attempt.pull.id, attempt.pull.repo)
            done = msgspec.structs.replace(attempt.stored.pull, path=str(path))
            attempt.stored = msgspec.structs.replace(attempt.stored, pull=done)
            await self._rest(attempt.stored, PullState.COMPLETED)

    async def _fail(self, attempt: Attempt, error: AttemptFailedError) -> None:
        pull, problem = attempt.pull, error.problem
        logger.warning(
            "pull.stopped pull=%s repo=%s cause=%s message=%s",
            pull.id, pull.repo, problem.cause, problem.message,
        )  # fmt: skip
        pause_s = None
        if error.is_transient:
            pause_s = self._patience[pull.id].pause_s(self._clock(), self._give_up_s)
        state = PullState.FAILED if pause_s is None else PullState.QUEUED
        pull = msgspec.structs.replace(at_rest(pull, state), problem=problem)
        if pause_s is not None:
            retry_at = datetime.now(UTC) + timedelta(seconds=pause_s)
            pull = msgspec.structs.replace(pull, retry_at=retry_at)
            self._wakeups[pull.id] = asyncio.get_running_loop().call_later(
                pause_s + 0.01, self._dispatch
            )
        await self._keep(msgspec.structs.replace(attempt.stored, pull=pull))

    def _promised_bytes(self, but: str) -> int:
        """What the other running pulls will still write."""
        return sum(
            attempt.promised_bytes for name, attempt in self._attempts.items() if name != but
        )

    def _find(self, pull_id: str) -> StoredPull:
        try:
            return self._known[pull_id]
        except KeyError:
            raise NotFoundError(
                f"There is no pull {pull_id!r}.", hint="`appliance pulls` lists them."
            ) from None

    def _gone_on(self, attempt: Attempt) -> None:
        self._known[attempt.pull.id] = attempt.stored
        now = self._clock()
        if now - self._told_at.get(attempt.pull.id, -_TOLD_EVERY_S) >= _TOLD_EVERY_S:
            self._tell(attempt.pull)

    async def _keep(self, stored: StoredPull) -> None:
        """Store it and tell people. A store that fails costs no more than work done twice."""
        before = self._known[stored.pull.id].pull
        self._known[stored.pull.id] = stored
        if headline(before) != headline(stored.pull):
            self._tell(stored.pull)
        try:
            await self._database.write(lambda: put_pull(stored))
        except StoreError as error:
            logger.warning("pull.not_stored pull=%s error=%s", stored.pull.id, error)
        if stored.pull.state.is_final:
            kept = without_old({name: each.pull for name, each in self._known.items()})
            self._known = {name: self._known[name] for name in self._known if name in kept}
            self._patience.pop(stored.pull.id, None)
            self._told_at.pop(stored.pull.id, None)

    def _tell(self, pull: Pull) -> None:
        self._told_at[pull.id] = self._clock()
        self._bus.publish(PullChanged(pull=pull))

    def _forget_wakeup(self, pull_id: str) -> None:
        if (timer := self._wakeups.pop(pull_id, None)) is not None:
            timer.cancel()


_UNEXPECTED = PullProblem(
    cause=PullCause.INTERNAL,
    message="The pull ended with an unexpected error; the server's log has it.",
    hint="Resume it; if that does not help, report this as a bug of the appliance.",
)


def _is_over(pull: Pull) -> ConflictError:
    hint = "Pull it again." if pull.state.is_final else "Resume or cancel it."
    return ConflictError(f"The pull {pull.id} is {pull.state} already.", hint=hint)
