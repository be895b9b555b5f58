"""Errors of the management API: one mapping, one shape."""

from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from appliance.errors import ApplianceError, InvalidRequestError, NotFoundError, WrongMethodError
from appliance.gateway.errors import retry_after_of, status_of, unexpected
from appliance.protocol.system import ErrorBody, ErrorDetail


def on_appliance_error(_: Request[Any, Any, Any], error: ApplianceError) -> Response[ErrorBody]:
    """An error that we raised ourselves."""
    return _response(status_of(error), error)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorBody]:
    """An error of the web framework: unknown path, wrong method, a body that does not fit."""
    if error.status_code == 404:
        found = NotFoundError(f"There is nothing at {request.method} {request.url.path}.")
        return _response(404, found)
    if error.status_code == 405:
        wrong = WrongMethodError(f"Not allowed to {request.method} on {request.url.path}.")
        return _response(405, wrong)
    cause = error.__cause__
    if isinstance(cause, msgspec.MsgspecError):
        detail = str(cause).replace("`$.data", "`$")
    elif isinstance(error.extra, list) and error.extra:
        detail = "; ".join(_said(each) for each in error.extra)
    else:
        detail = error.detail
    invalid = InvalidRequestError(
        f"{detail.rstrip('.')}.",
        hint="The description of the API is at /admin/v1/schema.",
    )
    return _response(error.status_code, invalid)


def on_unexpected(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    """A bug of ours."""
    return _response(500, unexpected(error))


def error_body(error: ApplianceError) -> ErrorBody:
    """The shape of all errors of the management API."""
    detail = ErrorDetail(code=error.code, message=error.message, hint=error.hint, param=error.param)
    return ErrorBody(error=detail)


def _said(entry: object) -> str:
    if isinstance(entry, dict):
        return " ".join(str(entry[key]) for key in ("key", "message") if entry.get(key))
    return str(entry)


def _response(status: int, error: ApplianceError) -> Response[ErrorBody]:
    headers = {}
    if (seconds := retry_after_of(error)) is not None:
        headers["retry-after"] = str(seconds)
    return Response(
        content=error_body(error),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
