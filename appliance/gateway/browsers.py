"""Where no key is asked for: keep out web pages that a browser on this machine shows.

A page can send requests to loopback, and with DNS rebinding read the answers as well. Browsers
tell the page's origin, and the host name that it used; programs send our own address.
"""

from urllib.parse import urlsplit

from appliance.config.load import is_loopback
from appliance.errors import ForbiddenError


def require_local(host: str | None, origin: str | None, allowed: frozenset[str]) -> None:
    """Accept requests that name this machine itself. Raises ForbiddenError."""
    for name in (_name(f"//{host}") if host else None, _name(origin) if origin else None):
        if name is not None and name not in allowed and not is_loopback(name):
            raise ForbiddenError(
                f"Without keys this server only answers to its local names, not to {name!r}.",
                hint="Use http://127.0.0.1, list the name in server.allowed_hosts, or set"
                " server.require_keys and send a key.",
            )


def _name(address: str) -> str:
    """The host name in an address; of what is none, the whole of it."""
    try:
        return (urlsplit(address).hostname or address).lower()
    except ValueError:
        return address.lower()
