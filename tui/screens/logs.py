"""Screen 3: the log of one engine."""

import asyncio
import shlex
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen

from appliance.protocol.engines import LogWindow
from appliance.protocol.models import Model
from tui.client import log_reader
from tui.client.api import ClientError
from tui.client.session import Session
from tui.screens.log_keys import LOG_KEYS
from tui.state.log_buffer import Filter, FilterError, parse_filter
from tui.state.log_rows import Wanted
from tui.state.view import was_stopped
from tui.widgets.filter_bar import FilterBar
from tui.widgets.intents import ShowCommand
from tui.widgets.key_bar import KeyBar
from tui.widgets.line_panel import LinePanel
from tui.widgets.log_frame import LogPlace, foot_rows, head_rows, ordered_engines
from tui.widgets.log_view import LogView
from tui.widgets.look import Look


class LogsScreen(Screen[None]):
    """Follows the end of an engine's log; older lines come as they are looked for."""

    FLUSH_S = 0.25
    """The log is painted at most four times a second."""
    SEARCH_DELAY_S = 0.3
    """The server is asked once the typing of a filter pauses."""

    BINDINGS: ClassVar[list[BindingType]] = LOG_KEYS

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._engine: str | None = None
        self._model: str | None = None
        self._reading: str | None = None
        self._wanted_line: int | None = None
        self._note = ""
        self._filter_note = ""
        self._pending: list[LogWindow] = []
        self._flush_due = False

    def compose(self) -> ComposeResult:
        """Head, log, foot, filter, keys."""
        yield LinePanel(id="log-head", grows=True)
        yield LogView(rule=self._session.glyphs.rule, id="log")
        yield LinePanel(id="log-foot", grows=True)
        yield FilterBar()
        yield KeyBar()

    def on_mount(self) -> None:
        """Keys go to the log."""
        self.log_view.focus()

    def on_screen_resume(self) -> None:
        """Shown: follow. Textual may say so twice, so this may not depend on the count."""
        if self._engine is None:
            self._open_first()
        else:
            self._start()
        self.call_after_refresh(self.paint)

    def on_screen_suspend(self) -> None:
        """Hidden: read nothing."""
        self._reading = None
        self.workers.cancel_group(self, "log")

    def open_model(self, model: str, line: int | None) -> None:
        """Show the log of a model's newest engine, at a line where one is given."""
        known = self._session.feed.view.models.get(model)
        engine = known.engine_id if known is not None else None
        if line is not None and known is not None and known.failure is not None:
            # The line is one of the log of the engine that failed; there may be a newer one.
            engine = known.failure.engine_id or engine
        self._switch(engine or model, model, line)

    @property
    def log_view(self) -> LogView:
        """The log."""
        return self.query_one("#log", LogView)

    def paint(self) -> None:
        """Draw head and foot."""
        head = self.query_one("#log-head", LinePanel)
        if not self.size.width:
            return
        if self._engine is None:
            self._open_first()
        session = self._session
        look = Look(
            glyphs=session.glyphs,
            clock=session.clock,
            width=self.size.width,
            height=self.size.height,
            can_change=session.may_change,
            readonly=session.readonly,
        )
        place = LogPlace(
            engine=self._engine, model=self._model, note=self._filter_note or self._note
        )
        self.log_view.set_stopped(was_stopped(session.feed.view.engines.get(self._engine or "")))
        dim = not session.feed.connection.is_current
        head.show(head_rows(session.feed, look, session.target, place, self.log_view))
        self.query_one("#log-foot", LinePanel).show(foot_rows(look, self.log_view))
        self.log_view.set_dim(dim)

    def on_log_view_moved(self, message: LogView.Moved) -> None:
        """Position shown as text."""
        message.stop()
        self.paint()

    def on_log_view_at_top(self, message: LogView.AtTop) -> None:
        """Fetch what is above."""
        message.stop()
        first = self.log_view.buffer.first_number
        if self._has_needle():
            self._look_back()
        elif first > 1 and self._wanted_line is None:
            # With a wanted line pages are on their way, which this must not end.
            self._fetch(first - log_reader.PAGE)

    def on_filter_bar_changed(self, message: FilterBar.Changed) -> None:
        """Filter while typing."""
        message.stop()
        self._apply_filter(message.text)

    def on_filter_bar_closed(self, message: FilterBar.Closed) -> None:
        """Back to the log, unless what was entered is no filter."""
        message.stop()
        if not self._apply_filter(message.text or ""):
            return
        self.query_one(FilterBar).close()
        self.log_view.focus()

    def action_filter(self) -> None:
        """Type a filter; the last one is offered again."""
        self.query_one(FilterBar).open()
        if self.log_view.last_filter and self.log_view.filter is None:
            self._set_filter(self.log_view.last_filter)

    def action_follow(self) -> None:
        """Follow the end, or stay."""
        self.log_view.set_follow(not self.log_view.follow)

    def action_wrap(self) -> None:
        """Wrap or cut."""
        self.log_view.toggle_wrap()

    def action_match(self, step: int) -> None:
        """Next or previous match."""
        wanted = self.log_view.filter or self.log_view.last_filter
        if wanted is None:
            self.app.notify("Nothing to search for yet: / sets a filter.", timeout=4)
        else:
            self._search(step, Wanted(wanted), "match")

    def action_error(self, step: int) -> None:
        """Next or previous error."""
        self._search(step, Wanted(), "error")

    def action_move(self, lines: int) -> None:
        """Move the cursor."""
        self.log_view.move(lines)

    def action_page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.log_view.move(pages * max(1, self.log_view.size.height - 1))

    def action_sideways(self, cells: int) -> None:
        """Scroll sideways."""
        self.log_view.scroll_relative(x=cells, animate=False)

    def action_first(self) -> None:
        """The first line, fetched if need be; of a filter the first match found so far."""
        self.log_view.set_cursor(0)
        if not self._has_needle():
            self._wanted_line = 1
            self._fetch(1)

    def action_last(self) -> None:
        """The end, and follow."""
        self.log_view.set_follow(True)

    def action_mark(self) -> None:
        """Start a range, or drop it."""
        self.log_view.toggle_mark()

    def action_copy(self) -> None:
        """Send the line or the range to the terminal's clipboard."""
        if text := self.log_view.copy_text():
            self.app.copy_to_clipboard(text)

    def action_engine(self, step: int) -> None:
        """The next engine's log."""
        engines = ordered_engines(self._session.feed.view)
        if not engines:
            return
        ids = [engine.id for engine in engines]
        position = ids.index(self._engine) if self._engine in ids else -step
        chosen = engines[(position + step) % len(engines)]
        self._switch(chosen.id, chosen.model, None)

    def action_command(self) -> None:
        """The same on the command line."""
        if self._model:
            command = f"appliance logs -f {shlex.quote(self._model)}"
            self.post_message(ShowCommand([("follow this log", command)]))

    async def action_back(self) -> None:
        """Clear the filter or the mark, then go back to the dashboard."""
        if self.log_view.mark is not None:
            self.log_view.toggle_mark()
        elif self.log_view.filter is not None:
            self._set_filter(None)
        else:
            await self.app.switch_mode("dashboard")

    def _apply_filter(self, source: str) -> bool:
        """Filter by what was typed; False, and the reason on the screen, where that is none."""
        try:
            wanted = parse_filter(source)
        except FilterError as error:
            self._filter_note = f"not a regular expression: {error}"
        else:
            self._filter_note = ""
            if wanted != self.log_view.filter:
                self._set_filter(wanted)
        self.paint()
        return not self._filter_note

    def _set_filter(self, wanted: Filter | None) -> None:
        """Filter the lines held, and let the server look through those before them."""
        view = self.log_view
        line = None if view.follow or view.current is None else view.current.number
        view.set_filter(wanted)
        self.workers.cancel_group(self, "search")
        if wanted is not None:
            self._look_back()
        elif line is not None and line < view.buffer.first_number:
            self._wanted_line = line
            self._go_to_wanted()

    def _has_needle(self) -> bool:
        """True where the server can find what the filter keeps."""
        return self.log_view.filter is not None and bool(self.log_view.filter.needle)

    def _look_back(self) -> None:
        """Search on where the last search ended, unless one is on its way."""
        view = self.log_view
        if view.earlier.is_complete or not view.buffer.lines or not self._has_needle():
            return
        searches = (worker for worker in self.workers if worker.group == "search")
        if all(worker.is_finished or worker.is_cancelled for worker in searches):
            self._search_earlier()

    @work(group="search", exclusive=True)
    async def _search_earlier(self) -> None:
        await asyncio.sleep(self.SEARCH_DELAY_S)
        view = self.log_view
        if self._engine is None or view.filter is None:
            return
        try:
            client = await self._session.client()
            await log_reader.earlier_matches(
                client, self._engine, view.filter.needle, view.looked_from, view.take_earlier
            )
        except ClientError as error:
            self._set_note(error.message)

    def _search(self, step: int, wanted: Wanted, what: str) -> None:
        which = "earlier " if step < 0 else "" if self.log_view.follow else "further "
        if not self.log_view.search(step, wanted):
            self.app.notify(f"No {which}{what} in the lines held here.", timeout=4)

    def _open_first(self) -> None:
        if engines := ordered_engines(self._session.feed.view):
            self._switch(engines[0].id, engines[0].model, None)

    def _switch(self, engine: str, model: str, line: int | None) -> None:
        self._wanted_line = line
        if engine == self._engine:
            if self.log_view.buffer.lines:
                self._go_to_wanted()
            return
        self._engine, self._model, self._note = engine, model, ""
        self._pending.clear()
        self.workers.cancel_group(self, "search")
        self.log_view.reset()
        self._start()
        self.paint()

    def _start(self) -> None:
        if self._engine is not None and self._reading != self._engine:
            self._reading = self._engine
            self._read(self._engine)

    @work(group="log", exclusive=True)
    async def _read(self, engine: str) -> None:
        def take(window: LogWindow) -> None:
            if engine == self._engine:
                self._take(window)

        await log_reader.follow(self._session.client, engine, take, self._set_note)

    def _take(self, window: LogWindow) -> None:
        self._pending.append(window)
        if not self._flush_due:
            self._flush_due = True
            self.set_timer(self.FLUSH_S if self.log_view.buffer.lines else 0.001, self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        windows, self._pending = self._pending, []
        is_first = not self.log_view.buffer.lines
        lines = [line for window in windows for line in self.log_view.buffer.append(window)]
        self.log_view.added(lines)
        if is_first:
            self._look_back()
        if self._wanted_line is not None:
            self._go_to_wanted()

    def _set_note(self, note: str) -> None:
        if note != self._note:
            self._note = note
            self.paint()

    def _go_to_wanted(self) -> None:
        line, self._wanted_line = self._wanted_line, None
        if line is None:
            return
        if self.log_view.buffer.first_number > line:
            self._wanted_line = line
            self._fetch(line)
        else:
            self.log_view.go_to_line(line)

    def _fetch(self, line: int) -> None:
        self._fetch_older(line)

    @work(group="older", exclusive=True)
    async def _fetch_older(self, line: int) -> None:
        view = self.log_view
        engine = self._engine
        if engine is None:
            return
        try:
            client = await self._session.client()
            first = view.buffer.first_number
            await log_reader.older_pages(client, engine, first, line, view.buffer.prepend)
        except ClientError as error:
            self._set_note(error.message)
        if engine != self._engine:
            return
        view.prepended()
        wanted, self._wanted_line = self._wanted_line, None
        if wanted is None:
            return
        view.go_to_line(wanted)
        if view.buffer.is_full and wanted < view.buffer.first_number:
            held = len(view.buffer.lines)
            self.app.notify(f"Line {wanted:,} is too far back: {held:,} lines are held.", timeout=4)

    @property
    def model(self) -> Model | None:
        """The model whose log this is."""
        return self._session.feed.view.models.get(self._model or "")
