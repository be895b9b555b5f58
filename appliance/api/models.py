"""Models: add, list, change, delete, load, unload, sleep, wake, plan."""

from typing import Annotated

from litestar import Controller, delete, get, patch, post
from litestar.params import QueryParameter

from appliance.api.guards import admin_guard
from appliance.errors import InvalidRequestError
from appliance.protocol.estimates import EstimateReport, EstimateRequest
from appliance.protocol.models import Model, ModelChange, ModelCreate
from appliance.protocol.placement import PlanVerdict
from appliance.registry.registry import Registry
from appliance.slots.scheduler import SlotScheduler

_ACTIONS = ("load", "unload", "sleep", "wake", "plan")


class ModelController(Controller):
    """`/admin/v1/models`. An id may hold slashes; the action is the last part of the path."""

    path = "/admin/v1/models"
    guards = [admin_guard]
    tags = ["models"]

    @get("/", operation_id="listModels")
    async def all(self, slots: SlotScheduler) -> list[Model]:
        """All models, loaded or not."""
        return slots.board.models()

    @post("/", operation_id="createModel")
    async def create(self, data: ModelCreate, registry: Registry, slots: SlotScheduler) -> Model:
        """Add a model from a directory of this machine."""
        await registry.create(data)
        return self._changed(data.id, slots)

    @get("/{path:path}", operation_id="getModel")
    async def one(
        self,
        path: str,
        slots: SlotScheduler,
        registry: Registry,
        context_length: int | None = None,
        tp_size: int | None = None,
        device: str | None = None,
        device_bytes: int | None = None,
    ) -> Model | EstimateReport:
        """One model; `/{id}/estimate` says what it needs, also with the settings of the query."""
        whole = path.strip("/")
        model, _, action = whole.rpartition("/")
        if action != "estimate" or any(known.id == whole for known in registry.models()):
            return slots.board.model(whole)
        request = EstimateRequest(
            context_length=context_length,
            tp_size=tp_size,
            device=device,
            device_bytes=device_bytes,
        )
        return slots.board.estimate_report(model, request)

    @patch("/{path:path}", operation_id="changeModel")
    async def change(
        self, path: str, data: ModelChange, registry: Registry, slots: SlotScheduler
    ) -> Model:
        """Change settings; what concerns a running engine counts from its next load."""
        await registry.change(path.strip("/"), data)
        return self._changed(path.strip("/"), slots)

    @delete("/{path:path}", operation_id="deleteModel")
    async def remove(self, path: str, slots: SlotScheduler) -> None:
        """Unload and forget a model; its files stay."""
        await slots.forget(path.strip("/"))

    @post("/{path:path}", operation_id="actOnModel", status_code=202)
    async def act(
        self,
        path: str,
        slots: SlotScheduler,
        level: Annotated[int | None, QueryParameter(ge=1, le=2)] = None,
    ) -> Model | PlanVerdict:
        """`/{id}/load`, `unload`, `sleep` and `wake` return at once; `plan` only says what a load
        would do. `sleep` takes a `level`: 1 keeps the weights in RAM, 2 does not.
        """
        model, _, action = path.strip("/").rpartition("/")
        if not model or action not in _ACTIONS:
            raise InvalidRequestError(
                f"{action!r} is no action on a model.",
                hint=f"There are: {', '.join(_ACTIONS)}.",
            )
        if action == "plan":
            return slots.board.dry_run(model)
        match action:
            case "load":
                slots.load(model)
            case "wake":
                slots.wake(model)
            case "sleep":
                slots.sleep(model, 1 if level == 1 else 2 if level == 2 else None)
            case _:
                slots.unload(model)
        return slots.board.model(model)

    @staticmethod
    def _changed(model: str, slots: SlotScheduler) -> Model:
        slots.board.renew(model)
        return slots.board.model(model)
