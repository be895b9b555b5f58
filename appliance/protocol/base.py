"""Base of all wire structs, and the version of the management API."""

import msgspec

API_VERSION = 1


class Wire(msgspec.Struct, frozen=True):
    """Immutable; a decoder ignores unknown fields of a newer server.

    msgspec does not inherit `kw_only`, and type checkers want `frozen` said again: each subclass
    says both.
    """


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request body: a misspelt field is an error, not silence."""
