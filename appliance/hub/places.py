"""Where checkpoints go, and where the token for the hub is."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.config.paths import Paths
from appliance.config.settings import PullSettings
from appliance.hub.messages import Order


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token and where it is from; without one, where it could be put. Never printed."""

    value: str | None
    source: str

    def __repr__(self) -> str:
        return f"Token(source={self.source!r})"


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the settings and the environment of a server say about pulls."""

    settings: PullSettings
    paths: Paths
    env: Mapping[str, str]

    @property
    def cache(self) -> Path:
        """The Hugging Face cache."""
        return find_cache(self.settings, self.paths, self.env)

    def order(self, repo: str, revision: str | None) -> Order:
        """To list a repository. Blocks, as the token is read anew each time."""
        token = find_token(self.settings, self.paths, self.env)
        return Order(
            repo=repo,
            revision=revision,
            cache=str(self.cache),
            endpoint=self.settings.endpoint,
            token=token.value,
            token_source=token.source,
            reserve_bytes=self.settings.disk_reserve_bytes,
            workers=self.settings.connections,
        )


def find_cache(settings: PullSettings, paths: Paths, env: Mapping[str, str]) -> Path:
    """The Hugging Face cache: a setting, the variables of Hugging Face, else a default.

    The default is the user's own cache, which all programs share; of an appliance that has a home
    or a state directory of its own it is there.
    """
    for text, below in (
        (settings.cache, ""),
        (env.get("HF_HUB_CACHE"), ""),
        (env.get("HF_HOME"), "hub"),
    ):
        if text:
            return Path(os.path.expandvars(text)).expanduser().absolute() / below
    if env.get("APPLIANCE_HOME") or env.get("STATE_DIRECTORY"):
        return paths.state / "hub"
    user = Path(env.get("HOME", "~")).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or user / ".cache") / "huggingface/hub"


def find_token(settings: PullSettings, paths: Paths, env: Mapping[str, str]) -> Token:
    """HF_TOKEN, else the token file, else the one that `hf auth login` left. Blocks."""
    if value := env.get("HF_TOKEN", "").strip():
        return Token(value=value, source="HF_TOKEN")
    own = paths.state / "hub-token"
    if settings.token_file:
        own = Path(settings.token_file).expanduser()
    problem = ""
    for file in (own, _login_file(env)):
        try:
            mode = file.stat().st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                problem = f" ({file} is not used, as others may read it: chmod 600 {file})"
            elif value := file.read_text(encoding="utf-8").strip():
                return Token(value=value, source=str(file))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            problem = f" ({file} cannot be read: {error})"
    return Token(value=None, source=f"in the file {own} with mode 600, or in HF_TOKEN{problem}")


def _login_file(env: Mapping[str, str]) -> Path:
    if path := env.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "token"
    user = Path(env.get("HOME", "~")).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or user / ".cache") / "huggingface/token"
