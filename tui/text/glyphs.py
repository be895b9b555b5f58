"""The characters that the interface draws with: Unicode, or ASCII where a terminal has no more."""

from dataclasses import dataclass

from appliance.protocol.engines import EngineState


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """One set of characters; each part of a bar has its own, for colour never is the meaning."""

    weights: str
    kv_cache: str
    launcher: str
    other: str
    free: str
    bar_done: str
    bar_tip: str
    bar_rest: str
    sparks: str
    rule: str
    column: str
    cursor: str
    ellipsis: str
    none: str
    times: str
    dot: str
    live: str
    connecting: str
    stale: str
    retry: str
    error: str
    over: str
    swap: str
    rising: str
    follow: str
    states: dict[EngineState, str]

    def state(self, state: EngineState) -> str:
        """The mark of an engine state; its word always stands beside it."""
        return self.states[state]


_BUSY = (
    EngineState.QUEUED,
    EngineState.FREEING,
    EngineState.STARTING,
    EngineState.LOADING,
    EngineState.WAKING,
    EngineState.STOPPING,
    EngineState.DRAINING,
)


def _states(
    *, ready: str, busy: str, asleep: str, stopped: str, failed: str
) -> dict[EngineState, str]:
    marks = dict.fromkeys(_BUSY, busy)
    marks[EngineState.READY] = ready
    marks[EngineState.ASLEEP] = asleep
    marks[EngineState.STOPPED] = stopped
    marks[EngineState.FAILED] = failed
    return marks


UNICODE = Glyphs(
    weights="█",
    kv_cache="▓",
    launcher="░",
    other="▒",
    free="·",
    bar_done="━",
    bar_tip="╸",
    bar_rest="─",
    sparks="▁▂▃▄▅▆▇█",
    rule="─",
    column="│",
    cursor="▶",
    ellipsis="…",
    none="–",
    times="×",
    dot="·",
    live="●",
    connecting="◌",
    stale="◐",
    retry="↻",
    error="✖",
    over="○",
    swap="⇄",
    rising="↑",
    follow="▶",
    states=_states(ready="●", busy="◐", asleep="◌", stopped="○", failed="✖"),
)

ASCII = Glyphs(
    weights="#",
    kv_cache="=",
    launcher="+",
    other="%",
    free=".",
    bar_done="=",
    bar_tip=">",
    bar_rest="-",
    sparks="_.-:=+*#",
    rule="-",
    column="|",
    cursor=">",
    ellipsis="~",
    none="-",
    times="x",
    dot="-",
    live="*",
    connecting="o",
    stale="%",
    retry="@",
    error="x",
    over="o",
    swap="<>",
    rising="^",
    follow=">",
    states=_states(ready="*", busy="%", asleep="z", stopped="o", failed="x"),
)
