"""Pulls: ask for one, list them, pause, go on, give up."""

from litestar import Controller, get, post

from appliance.api.guards import admin_guard
from appliance.errors import InvalidRequestError
from appliance.hub.pulls import Pulls
from appliance.protocol.pulls import Pull, PullCreate, PullFile


class PullController(Controller):
    """`/admin/v1/pulls`. How far they are is in the event stream, too."""

    path = "/admin/v1/pulls"
    guards = [admin_guard]
    tags = ["pulls"]

    @get("/", operation_id="listPulls")
    async def all(self, pulls: Pulls) -> list[Pull]:
        """The open ones and the newest of those that are over, oldest first."""
        return pulls.told()

    @post("/", operation_id="createPull", status_code=202)
    async def create(self, data: PullCreate, pulls: Pulls) -> Pull:
        """Pull a checkpoint and add it as a model; one that had stopped goes on."""
        return await pulls.create(data)

    @get("/{pull_id:str}", operation_id="getPull")
    async def one(self, pull_id: str, pulls: Pulls) -> Pull:
        """One pull."""
        return pulls.one(pull_id)

    @get("/{pull_id:str}/files", operation_id="listPullFiles")
    async def files(self, pull_id: str, pulls: Pulls) -> list[PullFile]:
        """Its files and how far each is; empty until the repository was listed."""
        return pulls.files(pull_id)

    @post("/{pull_id:str}/{action:str}", operation_id="actOnPull", status_code=200)
    async def act(self, pull_id: str, action: str, pulls: Pulls) -> Pull:
        """`pause` stops it where it is, `resume` goes on, `cancel` deletes what was fetched."""
        match action:
            case "pause":
                return await pulls.pause(pull_id)
            case "resume":
                return await pulls.resume(pull_id)
            case "cancel":
                return await pulls.cancel(pull_id)
            case _:
                raise InvalidRequestError(
                    f"{action!r} is no action on a pull.", hint="There are: pause, resume, cancel."
                )
