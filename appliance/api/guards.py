"""Who may manage: everybody who can open the management socket, over TCP only admin keys."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from appliance.auth import Keys, Scope, bearer
from appliance.gateway.asgi import TRANSPORT


def admin_guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Raises UnauthorizedError or ForbiddenError."""
    if connection.scope.get(TRANSPORT) == "unix":
        return
    keys: Keys = connection.app.state["keys"]
    keys.verify(bearer(connection.headers.get("authorization")), Scope.ADMIN)
