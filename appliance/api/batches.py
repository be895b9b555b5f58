"""Batches, as their owner sees them: how far, why not further, pause and go on."""

from typing import Annotated

from litestar import Controller, get, post
from litestar.params import QueryParameter

from appliance.api.guards import admin_guard
from appliance.batch.service import BatchService
from appliance.protocol.batches import BatchProgress, LineFailure

_USUAL = 20
_MOST = 100


class BatchController(Controller):
    """`/admin/v1/batches`. They are made and their files fetched at `/v1`."""

    path = "/admin/v1/batches"
    guards = [admin_guard]
    tags = ["batches"]

    @get("/", operation_id="listBatches")
    async def page(
        self,
        batches: BatchService,
        after: Annotated[str | None, QueryParameter(description="Id of the last one seen.")] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=_MOST)] = _USUAL,
    ) -> list[BatchProgress]:
        """A page, newest first; a page that is not full is the last one."""
        return await batches.progress_page(after=after, limit=limit)

    @get("/{batch_id:str}", operation_id="getBatch")
    async def one(self, batch_id: str, batches: BatchService) -> BatchProgress:
        """One batch."""
        return await batches.progress(batch_id)

    @get("/{batch_id:str}/failures", operation_id="listFailures")
    async def failures(
        self,
        batch_id: str,
        batches: BatchService,
        limit: Annotated[int, QueryParameter(ge=1, le=_MOST)] = _USUAL,
    ) -> list[LineFailure]:
        """The first lines that failed, and why; while the batch runs, too."""
        return await batches.failures(batch_id, limit)

    @post("/{batch_id:str}/pause", operation_id="pauseBatch", status_code=200)
    async def pause(self, batch_id: str, batches: BatchService) -> BatchProgress:
        """Start no further lines; those that run end."""
        return await batches.pause(batch_id, is_paused=True)

    @post("/{batch_id:str}/resume", operation_id="resumeBatch", status_code=200)
    async def resume(self, batch_id: str, batches: BatchService) -> BatchProgress:
        """Go on."""
        return await batches.pause(batch_id, is_paused=False)

    @post("/{batch_id:str}/cancel", operation_id="cancelBatch", status_code=200)
    async def cancel(self, batch_id: str, batches: BatchService) -> BatchProgress:
        """End it; what has answers keeps them."""
        await batches.cancel(batch_id)
        return await batches.progress(batch_id)

    @post("/{batch_id:str}/retry", operation_id="retryBatch", status_code=201)
    async def retry(self, batch_id: str, batches: BatchService) -> BatchProgress:
        """Make a new batch of the lines of an ended one that have no answer."""
        return await batches.retry(batch_id)
