"""Copying through the terminal: OSC 52, and its wrapped forms for tmux and screen."""

import base64
from collections.abc import Mapping

LIMIT_BASE64 = 74_000
"""Terminals drop longer sequences without a word."""


def clipboard_sequence(text: str, environ: Mapping[str, str]) -> str | None:
    """What to write to the terminal so that it copies `text`; None: too long for it."""
    payload = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    if len(payload) > LIMIT_BASE64:
        return None
    bare = f"\x1b]52;c;{payload}\x07"
    if environ.get("TMUX"):
        # Inside a passthrough tmux wants each ESC doubled; the bare form serves `set-clipboard on`.
        wrapped = bare.replace("\x1b", "\x1b\x1b")
        return f"{bare}\x1bPtmux;{wrapped}\x1b\\"
    if environ.get("STY"):
        return f"\x1bP{bare}\x1b\\"
    return bare
