"""API keys."""

from datetime import datetime
from typing import Literal

from appliance.protocol.base import Body, Wire


class Key(Wire, frozen=True, kw_only=True):
    """A key without its secret; `prefix` is its beginning."""

    id: str
    name: str
    prefix: str
    scope: str
    created_at: datetime


class KeyCreate(Body, frozen=True, kw_only=True):
    """`infer` keys open `/v1`, `admin` keys also the management API over TCP."""

    name: str
    scope: Literal["infer", "admin"] = "infer"


class NewKey(Wire, frozen=True, kw_only=True):
    """A key that was just made, with its secret."""

    key: Key
    secret: str
