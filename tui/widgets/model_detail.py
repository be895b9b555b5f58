"""The selected model at a glance."""

from appliance.protocol.engines import Engine
from appliance.protocol.models import Model
from tui.text import format as text
from tui.text.fit import shorten
from tui.text.rows import Row, Span
from tui.text.sanitize import sanitize_line
from tui.widgets.look import Look, rule_row


def detail_rows(model: Model, look: Look, width: int) -> list[Row]:
    """The section: its rule and four lines."""
    rows = [rule_row(look, width, sanitize_line(model.id), "Enter details  l logs")]
    facts = (
        ("size", _size(model, look)),
        ("place", _place(model, look)),
        ("keep", _keep(model, look)),
        ("used", _used(model, look)),
    )
    for label, value in facts:
        shown = shorten(value, width - 9, ellipsis=look.glyphs.ellipsis)
        rows.append((Span(f" {label:<6} ", "muted"), Span(shown)))
    return rows


def detail_text(model: Model, engine: Engine | None, look: Look) -> list[tuple[str, str]]:
    """Labelled facts for the details dialog."""
    settings = model.settings
    return [
        ("state", model.state.value),
        ("task", settings.task.value),
        ("kind", sanitize_line(model.architecture)),
        ("size", _size(model, look)),
        ("place", _place(model, look)),
        ("engine", _engine(engine, look)),
        ("keep", _keep(model, look)),
        ("used", _used(model, look)),
        ("path", sanitize_line(settings.path)),
        ("flags", sanitize_line(" ".join(settings.extra_args)) or look.glyphs.none),
    ]


def _size(model: Model, look: Look) -> str:
    dot = f" {look.glyphs.dot} "
    return dot.join(
        (
            f"weights {text.size(model.weights_bytes)}",
            f"needs {text.size(model.need_bytes)} a device",
            f"context {text.tokens(model.context_length)} tokens",
            f"dtype {sanitize_line(model.settings.dtype)}",
        )
    )


def _place(model: Model, look: Look) -> str:
    if model.placement is None or not model.placement.shares:
        wanted = ", ".join(sanitize_line(name) for name in model.settings.devices)
        return f"not loaded{look.glyphs.dot.center(3)}may use {wanted or 'any device'}"
    shares = ", ".join(
        f"device {share.device_index}: {text.size(share.memory_bytes)}"
        for share in model.placement.shares
    )
    return f"tensor parallel {model.placement.tp_size}{look.glyphs.dot.center(3)}{shares}"


def _engine(engine: Engine | None, look: Look) -> str:
    if engine is None:
        return look.glyphs.none
    parts = [
        sanitize_line(engine.id),
        f"vLLM {sanitize_line(engine.vllm_version)}",
        "forked" if engine.was_forked else "plain start",
    ]
    if engine.load_s is not None:
        parts.append(f"loaded in {text.clock_span(engine.load_s)}")
    return look.glyphs.dot.center(3).join(parts)


def _keep(model: Model, look: Look) -> str:
    settings = model.settings
    if settings.always_on:
        return "always on: loaded at start, never evicted"
    pinned = "pinned: never evicted" if settings.pinned else "not pinned"
    if settings.pinned:
        return pinned
    if settings.idle_timeout_s is None:
        idle = "unloaded when idle (server's default)"
    elif settings.idle_timeout_s < 0:
        idle = "never unloaded for being idle"
    else:
        idle = f"unloaded after {text.countdown(settings.idle_timeout_s)} idle"
    return f"{idle}{look.glyphs.dot.center(3)}{pinned}"


def _used(model: Model, look: Look) -> str:
    requests = f"{text.count(model.requests_total)} requests"
    if model.last_used_at is None:
        return f"{requests}{look.glyphs.dot.center(3)}never used"
    last = look.clock.local(model.last_used_at)
    return f"{requests}{look.glyphs.dot.center(3)}last {last:%Y-%m-%d %H:%M:%S}"
