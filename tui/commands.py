"""The command palette: screens, and what can be done with each model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.message import Message

from tui.text.sanitize import sanitize_line
from tui.widgets.intents import AskLoad, AskUnload, OpenDetails, OpenLogs

if TYPE_CHECKING:
    from tui.app import ApplianceApp


class Entry(NamedTuple):
    """One command."""

    name: str
    help: str
    run: Callable[[], object]


class ApplianceCommands(Provider):
    """Offers what the keys offer, by name."""

    async def discover(self) -> Hits:
        """Everything, before anything is typed."""
        for entry in self._entries():
            yield DiscoveryHit(_literal(entry.name), entry.run, text=entry.name, help=entry.help)

    async def search(self, query: str) -> Hits:
        """What matches."""
        matcher = self.matcher(query)
        for entry in self._entries():
            if (score := matcher.match(entry.name)) > 0:
                yield Hit(score, _literal(entry.name), entry.run, text=entry.name, help=entry.help)

    def _entries(self) -> Iterator[Entry]:
        app = cast("ApplianceApp", self.app)
        yield Entry("dashboard", "Devices, models, activity", lambda: app.action_show("dashboard"))
        yield Entry("logs", "Logs of the engines", lambda: app.action_show("logs"))
        yield Entry("batches", "Batches, how far they are", lambda: app.action_show("batches"))
        yield Entry("help", "The keys that work here", app.action_help)
        yield Entry("refresh", "Draw again; connect again", app.action_refresh_now)
        yield Entry("quit", "Leave; models and server go on", app.exit)
        for name in ("appliance", "appliance-light", "ansi-dark", "ansi-light"):
            yield Entry(f"theme {name}", "Other colours", _theme(app, name))
        for model in app.session.feed.view.models:
            shown = sanitize_line(model)
            if app.session.may_change:
                yield Entry(f"load {shown}", "Asks first", _post(app, AskLoad(model)))
                yield Entry(f"unload {shown}", "Asks first", _post(app, AskUnload(model)))
            yield Entry(f"logs {shown}", "Log of its engine", _post(app, OpenLogs(model)))
            yield Entry(f"details {shown}", "What is known", _post(app, OpenDetails(model)))


def _post(app: "ApplianceApp", message: Message) -> Callable[[], object]:
    return lambda: app.post_message(message)


def _theme(app: "ApplianceApp", name: str) -> Callable[[], object]:
    def choose() -> None:
        app.theme = name

    return choose


def _literal(text: str) -> str:
    """Text that the palette shows as it is, whatever brackets it has."""
    return text.replace("[", r"\[")
