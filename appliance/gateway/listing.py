"""`GET /v1/models`, and what a waiting stream is told."""

from typing import Any

import msgspec

from appliance.errors import ModelNotFoundError
from appliance.protocol.engines import EngineState
from appliance.protocol.models import Model, Task
from appliance.slots.board import SlotBoard
from appliance.units import format_duration

_CAPABILITIES = {
    Task.GENERATE: ["chat.completions", "completions"],
    Task.EMBED: ["embeddings"],
}


def list_models(board: SlotBoard) -> bytes:
    """All models, loaded or not: picking one loads it."""
    return msgspec.json.encode(
        {"object": "list", "data": [_entry(model) for model in board.models()]}
    )


def one_model(board: SlotBoard, model_id: str) -> bytes:
    """One model. Raises ModelNotFoundError."""
    if not model_id:
        raise ModelNotFoundError("No model is named.", hint="GET /v1/models lists all models.")
    return msgspec.json.encode(_entry(board.model(model_id)))


def waiting_comment(model: Model) -> bytes:
    """A server-sent comment; SDKs skip it, people see it in curl."""
    progress = model.progress
    if progress is not None and progress.ratio is not None:
        text = f"loading {progress.ratio:.0%}"
        if progress.eta_s is not None:
            text += f", about {format_duration(progress.eta_s)} left"
    elif model.waits_for:
        text = model.waits_for
    else:
        text = model.state.value
    return f": {text}\n\n".replace("\r", " ").encode()


def _entry(model: Model) -> dict[str, Any]:
    """OpenAI's four fields, and ours that clients such as OpenWebUI ignore or show."""
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": "vllm-appliance",
        "max_model_len": model.context_length,
        "capabilities": _CAPABILITIES[model.settings.task],
        "state": model.state.value,
        "loaded": model.state is EngineState.READY,
    }
