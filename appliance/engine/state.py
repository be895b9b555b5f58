"""Which state of an engine may follow which. Pure."""

from appliance.protocol.engines import EngineState as S

# An engine begins at `starting`; `stopped` and `failed` are the ends of one attempt. `queued` and
# `freeing` are states of a model whose engine does not exist yet.
_NEXT: dict[S, frozenset[S]] = {
    S.STOPPED: frozenset({S.QUEUED, S.FREEING, S.STARTING}),
    S.QUEUED: frozenset({S.FREEING, S.STARTING, S.STOPPED, S.FAILED}),
    S.FREEING: frozenset({S.STARTING, S.QUEUED, S.STOPPED, S.FAILED}),
    S.STARTING: frozenset({S.LOADING, S.STOPPING, S.FAILED}),
    S.LOADING: frozenset({S.READY, S.STOPPING, S.FAILED}),
    S.READY: frozenset({S.DRAINING, S.STOPPING, S.FAILED}),
    S.DRAINING: frozenset({S.READY, S.STOPPING, S.ASLEEP, S.FAILED}),
    S.ASLEEP: frozenset({S.WAKING, S.STOPPING, S.FAILED}),
    S.WAKING: frozenset({S.READY, S.STOPPING, S.FAILED}),
    S.STOPPING: frozenset({S.STOPPED, S.FAILED}),
    S.FAILED: frozenset({S.QUEUED, S.FREEING, S.STARTING, S.STOPPED}),
}

ENDED = frozenset({S.STOPPED, S.FAILED})
"""Nothing of the engine is left."""


def may_follow(before: S, after: S) -> bool:
    """Whether the transition is legal."""
    return after in _NEXT[before]
