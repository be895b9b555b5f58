"""OpenAI's file and batch routes, asked in process."""

import asyncio
import json
from typing import Any

from appliance.batch.endpoints import BatchEndpoints
from appliance.errors import ApplianceError
from appliance.gateway.asgi import Answer, Message, Scope
from appliance.gateway.errors import openai_error, status_of
from tests.support.batches import World, chat_line

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(*parts: tuple[str, bytes]) -> bytes:
    """Parts by what stands behind `form-data; ` and their content."""
    texts = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n"
        for head, body in parts
    ]
    return b"".join(texts) + f"--{BOUNDARY}--\r\n".encode()


GOOD_LINE = json.dumps(chat_line("r1")).encode() + b"\n"
FILE = ('name="file"; filename="in.jsonl"', GOOD_LINE)
PURPOSE = ('name="purpose"', b"batch")


class BatchClient:
    """Speaks ASGI to the endpoints of a world."""

    def __init__(self, world: World) -> None:
        self._endpoints = BatchEndpoints(world.files, world.service)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        query: str = "",
        piece: int = 1000,
        is_cut_off: bool = False,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; errors as the gateway would send them."""
        scope: Scope = {
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        pieces = [body[at : at + piece] for at in range(0, len(body), piece)] or [b""]
        messages: list[Message] = [
            {"type": "http.request", "body": each, "more_body": True} for each in pieces
        ]
        if is_cut_off:
            messages.append({"type": "http.disconnect"})
        else:
            messages[-1]["more_body"] = False
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(0)
            return messages.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        answer = Answer(send, b"req_1")
        try:
            await self._endpoints(scope, receive, answer)
        except ApplianceError as error:
            return status_of(error), {}, json.dumps({"code": openai_error(error).code}).encode()
        given = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return sent[0]["status"], given, b"".join(each["body"] for each in sent[1:])

    async def upload(self, body: bytes, kind: str = FORM, **given: Any) -> tuple[int, Any]:
        headers = {"content-type": kind, **given.pop("headers", {})}
        status, _, answer = await self.ask("POST", "/v1/files", body, headers=headers, **given)
        return status, json.loads(answer)
