import json

import pytest

from appliance.errors import (
    ApplianceError,
    BodyTooLargeError,
    ConfigError,
    ConflictError,
    DeviceError,
    DoesNotFitError,
    EngineDiedError,
    EngineEnvironmentError,
    ForbiddenError,
    InvalidRequestError,
    LoadFailedError,
    ModelNotFoundError,
    NotFoundError,
    QueueFullError,
    UnauthorizedError,
    UnavailableError,
)
from appliance.gateway.errors import (
    ErrorEvents,
    encode_error,
    error_event,
    normalize_engine_error,
    openai_error,
    retry_after_of,
    status_of,
)


def normalize_error_events(chunk: bytes) -> bytes:
    events = ErrorEvents()
    return events.feed(chunk) + events.rest()


def vllm(message: str, kind: str, param: str | None, code: object) -> bytes:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


TOO_LONG = "This model's maximum context length is 512 tokens. However, your prompt contains more."


# What vLLM 0.32 answers.
@pytest.mark.parametrize(
    ("status", "body", "message", "kind", "param"),
    [
        (
            400,
            vllm(TOO_LONG, "BadRequestError", "input_tokens", 400),
            TOO_LONG,
            "invalid_request_error",
            "input_tokens",
        ),
        (
            400,
            vllm("cannot be greater than max_model_len=512", "BadRequestError", "max_tokens", 400),
            "cannot be greater than max_model_len=512",
            "invalid_request_error",
            "max_tokens",
        ),
        (
            400,
            vllm("Field required", "Bad Request", "body.messages", 400),
            "Field required",
            "invalid_request_error",
            "body.messages",
        ),
        (
            400,
            vllm("Unsupported Media Type", "Bad Request", None, 400),
            "Unsupported Media Type",
            "invalid_request_error",
            None,
        ),
        (
            404,
            vllm("The model `nope` does not exist.", "NotFoundError", "model", 404),
            "The model `nope` does not exist.",
            "invalid_request_error",
            "model",
        ),
        (404, b'{"detail":"Not Found"}', "Not Found", "invalid_request_error", None),
        (
            405,
            b'{"detail":"Method Not Allowed"}',
            "Method Not Allowed",
            "invalid_request_error",
            None,
        ),
        (401, b'{"error":"Unauthorized"}', "Unauthorized", "authentication_error", None),
        (
            503,
            vllm("Service Unavailable", "Service Unavailable", None, 503),
            "Service Unavailable",
            "server_error",
            None,
        ),
        (
            500,
            vllm("EngineCore encountered an issue.", "InternalServerError", None, 500),
            "EngineCore encountered an issue.",
            "server_error",
            None,
        ),
        (500, b"Internal Server Error", "Internal Server Error", "server_error", None),
        (502, b"", "The engine answered 502.", "server_error", None),
        (500, b"{}", "The engine answered 500.", "server_error", None),
        (500, b"null", "null", "server_error", None),
        (500, b'{"error": null}', '{"error": null}', "server_error", None),
        (500, b"\xff\xfe", "��", "server_error", None),
        (
            429,
            vllm("slow down", "x", None, "rate_limited"),
            "slow down",
            "rate_limit_error",
            None,
        ),
    ],
)
def test_every_body_of_an_engine_becomes_openais_object(
    status: int, body: bytes, message: str, kind: str, param: str | None
) -> None:
    decoded = json.loads(encode_error(normalize_engine_error(status, body)))
    assert list(decoded) == ["error"]
    error = decoded["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["type"], error["param"]) == (message, kind, param)
    assert error["code"] is None or isinstance(error["code"], str)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, None),
        ("400", None),
        (None, None),
        (5.0, None),
        ("context_length_exceeded", "context_length_exceeded"),
    ],
)
def test_code_is_a_word_or_null(code: object, expected: str | None) -> None:
    assert normalize_engine_error(400, vllm("m", "t", None, code)).code == expected


@pytest.mark.parametrize("param", [3, ["body"], {"a": 1}, True])
def test_param_is_a_word_or_null(param: object) -> None:
    body = json.dumps({"error": {"message": "m", "param": param}}).encode()
    assert normalize_engine_error(400, body).param is None


def test_endless_message_is_cut() -> None:
    assert len(normalize_engine_error(400, vllm("x" * 9999, "t", None, 400)).message) == 4000


DELTA = b'data: {"choices":[{"delta":{"content":"data: {\\"error\\""}}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b"data: " + vllm("it broke", "InternalServerError", None, 500) + b"\n\n"
REWRITTEN = (
    b'data: {"error":{"message":"it broke","type":"server_error","param":null,"code":null}}\n\n'
)


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (ERROR, REWRITTEN),
        (ERROR + DONE, REWRITTEN + DONE),
        (DELTA + ERROR + DONE, DELTA + REWRITTEN + DONE),
        (ERROR + ERROR, REWRITTEN + REWRITTEN),
    ],
)
def test_error_events_in_a_stream_are_rewritten(chunk: bytes, expected: bytes) -> None:
    assert normalize_error_events(chunk) == expected


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        DELTA,
        DELTA + DELTA + DONE,
        DELTA[:20],
        DELTA[20:],
        b": heartbeat\n\n",
        b"\n\n",
        b"\n\n\n\n",
        b"event: x\ndata: {}\n\n",
        b'data: {"errors": []}\n\n',
        b"\xff\x00",
    ],
)
def test_everything_else_in_a_stream_stays_as_it_is(chunk: bytes) -> None:
    assert normalize_error_events(chunk) == chunk


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequestError("m"), 400, "invalid_request_error", None),
        (UnauthorizedError("m"), 401, "authentication_error", "invalid_api_key"),
        (ForbiddenError("m"), 403, "permission_error", "forbidden"),
        (NotFoundError("m"), 404, "invalid_request_error", "not_found"),
        (ModelNotFoundError("m"), 404, "invalid_request_error", "model_not_found"),
        (ConflictError("m"), 409, "invalid_request_error", None),
        (BodyTooLargeError("m"), 413, "invalid_request_error", "body_too_large"),
        (QueueFullError("m", retry_after_s=2), 429, "rate_limit_error", "queue_full"),
        (ConfigError("m"), 500, "server_error", "bad_config"),
        (ApplianceError("m"), 500, "server_error", "internal_error"),
        (DeviceError("m"), 503, "server_error", "device_error"),
        (EngineEnvironmentError("m"), 503, "server_error", "engine_environment"),
        (UnavailableError("m"), 503, "server_error", "unavailable"),
        (LoadFailedError("m"), 503, "server_error", "model_load_failed"),
        (DoesNotFitError("m"), 503, "server_error", "does_not_fit"),
        (EngineDiedError("m"), 503, "server_error", "engine_died"),
    ],
)
def test_our_own_errors_have_a_status_a_type_and_a_code(
    error: ApplianceError, status: int, kind: str, code: str | None
) -> None:
    assert status_of(error) == status
    told = openai_error(error)
    assert (told.message, told.type, told.param, told.code) == ("m", kind, None, code)


def test_hint_and_param_reach_the_client() -> None:
    told = openai_error(InvalidRequestError("It is wrong.", hint="Make it right.", param="model"))
    assert told.message == "It is wrong. Make it right."
    assert told.param == "model"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnavailableError("m", retry_after_s=7.4), 7),
        (UnavailableError("m", retry_after_s=0.1), 1),
        (QueueFullError("m", retry_after_s=30), 30),
        (InvalidRequestError("m"), None),
    ],
)
def test_retry_after_is_a_whole_number_of_seconds(
    error: ApplianceError, expected: int | None
) -> None:
    assert retry_after_of(error) == expected


def test_error_event_is_one_event() -> None:
    event = error_event(openai_error(NotFoundError("a\n\nb")))
    assert event.startswith(b'data: {"error":')
    assert event.endswith(b"}}\n\n")
    assert event.count(b"\n") == 2
