"""Asking before a model is loaded: the server says first what it would do."""

from collections.abc import Iterable

from textual import on, work
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Button

from appliance.protocol.models import Model
from appliance.protocol.placement import PlanVerdict
from tui.client.api import ClientError
from tui.client.session import Session
from tui.dialogs.dialog import Dialog, button, fact
from tui.text import format as text
from tui.text.sanitize import sanitize_line

_REFUSED = "refuse"


class LoadPlanDialog(Dialog[Model]):
    """Shows the plan; loads on confirmation and stays open when that fails."""

    def __init__(self, session: Session, model: str) -> None:
        super().__init__(f"Load {sanitize_line(model)}", is_ascii=session.ascii)
        self._session = session
        self._model = model

    def compose_body(self) -> Iterable[Widget]:
        """Facts of the model and, once it came, the plan."""
        model = self._session.feed.view.models.get(self._model)
        if model is not None:
            size = f"weights {text.size(model.weights_bytes)}"
            yield fact(f"model   {size}, context {text.tokens(model.context_length)} tokens")
        yield Vertical(fact("plan    asking the server ...", classes="muted"), id="plan",
                       classes="fact")  # fmt: skip

    def compose_buttons(self) -> Iterable[Widget]:
        """Load is possible once the plan is known."""
        yield button("Load", "load", disabled=True)
        yield button("Cancel", "close")

    def on_mount(self) -> None:
        """Ask for the plan."""
        self._ask()

    @on(Button.Pressed, "#load")
    def confirm(self, event: Button.Pressed) -> None:
        """Do it."""
        event.stop()
        self.query_one("#load", Button).disabled = True
        self._load()

    @work(exclusive=True)
    async def _ask(self) -> None:
        try:
            client = await self._session.client()
            verdict = await client.plan(self._model)
        except ClientError as error:
            await self._show_error(error)
            return
        await self._show(*plan_lines(verdict))
        load = self.query_one("#load", Button)
        load.disabled = verdict.verdict == _REFUSED
        (self.query_one("#close", Button) if load.disabled else load).focus()

    @work(exclusive=True)
    async def _load(self) -> None:
        try:
            client = await self._session.client()
            model = await client.load(self._model)
        except ClientError as error:
            await self._show_error(error)
            return
        self.dismiss(model)

    async def _show_error(self, error: ClientError) -> None:
        await self._show(("error   " + error.message, "error"), ("        " + error.hint, ""))
        self.query_one("#close", Button).focus()

    async def _show(self, *lines: tuple[str, str]) -> None:
        plan = self.query_one("#plan", Vertical)
        await plan.remove_children()
        await plan.mount(*(fact(line, classes=style) for line, style in lines if line.strip()))


def plan_lines(verdict: PlanVerdict) -> list[tuple[str, str]]:
    """The server's verdict in lines of text, each with a style class."""
    lines = [(f"plan    {verdict.message}", "error" if verdict.verdict == _REFUSED else "")]
    needs = f"{text.size(verdict.need_bytes)} on each device"
    if verdict.placement and verdict.placement.shares:
        indices = [share.device_index for share in verdict.placement.shares]
        where = f"device {text.index_ranges(indices)}"
        tp_size = verdict.placement.tp_size
        where += f", tensor parallel {tp_size}" if tp_size > 1 else ""
        lines.append((f"where   {where}, needs {needs}", ""))
    else:
        lines.append((f"needs   {needs}", ""))
    if verdict.evicts:
        names = ", ".join(sanitize_line(name) for name in verdict.evicts)
        lines.append((f"evicts  {names}  !", "warn"))
    lines += [
        (f"fits    {sanitize_line(each.text)}: {sanitize_line(each.command)}", "")
        for each in verdict.suggestions
    ]
    if verdict.hint and not verdict.suggestions:
        lines.append((f"do      {sanitize_line(verdict.hint)}", ""))
    if verdict.load_s is not None:
        of = f"{verdict.loads} load{'s' if verdict.loads != 1 else ''}"
        lines.append((f"time    about {text.clock_span(verdict.load_s)} (median of {of} here)", ""))
    elif verdict.verdict not in {"loaded", _REFUSED}:
        lines.append(("time    not known: it was not loaded here before", "muted"))
    return lines
