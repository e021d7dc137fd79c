"""What all panels have in common: their life, their refreshing, their buttons, and messages about their outcome."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple, Self

import ipywidgets as widgets

from copilotlab.lifetime import Background
from copilotlab.markup import text
from copilotlab.widgets import cells
from copilotlab.widgets.cells import weakly
from copilotlab.widgets.reach import Reach
from copilotlab.widgets.refresher import Refresher

MESSAGES_KEPT = 50
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """What came of a button: when ("14:03:59"), which button, whether it failed, and the outcome or error in words."""

    time: str
    action: str
    failed: bool
    said: str


class Panel(ABC):
    """A live view in a notebook, with controls that call public methods and nothing else.

    Leave it as the last line of a cell, show it with ``display``, or put its `widget` into a layout of your own. A
    thread refreshes it while a page shows it, and sends only what has changed. Where there is no widget manager, a
    static table is shown instead. Close it with `close` or as a context manager. It closes itself, with all its
    widgets, when nobody holds it any more and no page shows it; if you put its `widget` into a layout, keep the panel
    too. When its cell is run again and does not show it, its widgets are closed; it makes new ones when it is shown
    again. A closed browser tab is not noticed: then the refreshing goes on until `close` or the end of the kernel.

    interval: seconds between two refreshes, 0.5 by default.
    """

    interval: float = 0.5

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards the widget, its refreshing and its end
        self._widget: widgets.VBox | None = None
        self._refresher: Refresher | None = None
        self._closed = False
        self._finalizer: Callable[[], object] | None = None  # closes the widgets, at the latest when the panel is gone
        self._actions: dict[str, tuple[str, Callable[[], object]]] = {}  # what each button does, by the widget's id
        self._messages: deque[Message] = deque(maxlen=MESSAGES_KEPT)
        self._under_way: set[str] = set()
        self._broken = ""  # why the last refresh failed

    # --- what a panel is made of -------------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> list[widgets.Widget]:
        """Make the widgets, empty, from top to bottom."""

    @abstractmethod
    def _show(self) -> None:
        """Bring the widgets up to date; setting a trait to the value that it has sends nothing."""

    @abstractmethod
    def _over(self) -> str:
        """Say why there will never be anything new to show; "" while there may be."""

    @abstractmethod
    def _repr_html_(self) -> str:
        """Draw a static page in place of the panel."""

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def widget(self) -> widgets.VBox:
        """The panel as an ipywidget, made when first asked for. Raises RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError(f"this {type(self).__name__} is closed; make another one")
            if self._widget is None:
                self._button_layout = widgets.Layout(width="auto")  # shared by all buttons: each needs a comm
                self._button_style = widgets.ButtonStyle()
                self._notice = self._html()
                self._message_list = self._html()
                messages = self._scroller(self._message_list, "7.5rem")
                self._widget = widgets.VBox(
                    [_style_sheet(), Reach(), self._notice, *self._build(), messages], _view_count=0
                )
                self._widget.add_class("copilotlab")
                self._widget.observe(weakly(self._watched), "_view_count")
                finalizer = weakref.finalize(self, _close_all, self._widget)
                finalizer.atexit = False
                self._finalizer = finalizer
                self.refresh()
            return self._widget

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def messages(self) -> list[Message]:
        """What came of the buttons pressed last, oldest first; at most 50."""
        return list(self._messages)

    def refresh(self) -> bool:
        """Bring the panel up to date now; return False when it will never change again.

        An error is shown in the panel, and the next refresh tries again.
        """
        widget = self._widget
        if widget is not None and widget.comm is None:  # closed from outside, as by `Widget.close_all`
            self._drop()
        with self._lock:
            if self._closed or self._widget is None:
                return False
            over = self._over()
            try:
                self._show()
                self._broken = ""
            except Exception as error:  # noqa: BLE001 - this is the end of a thread: who watches the panel is told
                self._tell_broken(error)
            self._notice.value = _notice(over, self._broken)
            self._message_list.value = messages_html(self._messages)
            if over:
                self._disable()
            return not over

    def close(self) -> None:
        """End the refreshing, take the panel off every page and close all its widgets. Closing twice does nothing."""
        with self._lock:
            self._closed = True
        self._drop()

    def off_the_page(self) -> None:
        """Close the widgets, since no cell shows the panel any more; they are made anew when it is shown again."""
        self._drop()

    def _drop(self) -> None:
        """End the refreshing and close the widgets."""
        with self._lock:
            refresher, self._refresher = self._refresher, None
            finalizer, self._finalizer = self._finalizer, None
            self._widget = None
            self._actions.clear()
            _viewed.discard(self)
        if refresher is not None:
            refresher.stop()
            if refresher is not threading.current_thread():
                refresher.join()
        if finalizer is not None:
            finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watched(self, change: Mapping[str, Any]) -> None:
        """Begin to refresh when a page shows the panel; end when none does any more."""
        with self._lock:
            if self._widget is None:
                return
            (_viewed.add if change["new"] else _viewed.discard)(self)
            if change["new"] and (self._refresher is None or not self._refresher.is_alive()):
                self._refresher = Refresher(self)
                self._refresher.start()
            elif not change["new"] and self._refresher is not None:
                self._refresher.stop()
                self._refresher = None

    def _changed(self) -> None:
        """Refresh at once, not at the next interval: something has changed."""
        refresher = self._refresher
        if refresher is not None and refresher.is_alive():
            refresher.wake()
        else:
            self.refresh()

    def _tell_broken(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        if said != self._broken:
            self._broken = said
            logger.warning("%s cannot be refreshed: %s", type(self).__name__, said, exc_info=error)

    def _disable(self) -> None:
        for part in parts(self._widget):
            if part.has_trait("disabled"):
                part.disabled = True

    # --- actions ------------------------------------------------------------------------------------------------

    def _run(self, action: str, call: Callable[[], object]) -> None:
        """Do ``call`` in a thread of its own, so that the kernel stays free for the next button, and tell its outcome.

        An action is not begun again while it is under way. If ``call`` returns a text, that is the outcome.
        """
        with self._lock:
            if action in self._under_way:
                self._tell(action, "is still under way", failed=True)
                self._changed()
                return
            self._under_way.add(action)
        name = f"copilotlab-panel-action {action}"
        Background(partial(self._act, action, call), name).start()

    def _act(self, action: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        said, failed = "", False
        try:
            outcome = call()
            said = outcome if isinstance(outcome, str) else f"done in {1000 * (time.perf_counter() - began):,.0f} ms"
        except Exception as error:
            logger.debug("%s failed", action, exc_info=error)
            said, failed = f"{type(error).__name__}: {error}", True
        finally:
            with self._lock:  # both at once: who reads the outcome may press the button again
                self._under_way.discard(action)
                self._tell(action, said, failed=failed)
        self._changed()

    def _tell(self, action: str, said: str, *, failed: bool = False) -> None:
        self._messages.append(Message(time.strftime("%H:%M:%S"), action, failed, said))

    # --- parts --------------------------------------------------------------------------------------------------

    def _button(
        self, label: str, action: str, call: Callable[[], object], *, does: str = "", icon: str = "", tone: str = ""
    ) -> widgets.Button:
        """Make a button that does ``call``.

        action: what it does and to whom, as "Kill node-1"; it begins with the label, and names the button in messages
        and to screen readers. does: what comes of it, for the tooltip.
        """
        tooltip = f"{action}: {does}" if does else action
        button = widgets.Button(
            description=label, tooltip=tooltip, icon=icon, layout=self._button_layout, style=self._button_style
        )
        button.add_class("cl-button")
        if tone:
            button.add_class(f"cl-{tone}")
        self._actions[button.model_id] = (action, call)
        button.on_click(weakly(self._pressed))
        return button

    def _pressed(self, button: widgets.Button) -> None:
        if (known := self._actions.get(button.model_id)) is not None:
            self._run(*known)

    def _follow(self, *controls: widgets.Widget) -> None:
        """Refresh when the value of one of these controls changes."""
        for control in controls:
            control.observe(weakly(self._value_changed), "value")

    def _value_changed(self, _: object) -> None:
        self._changed()

    @staticmethod
    def _html(name: str = "") -> widgets.HTML:
        part = widgets.HTML()
        if name:
            part.add_class(name)
        return part

    @staticmethod
    def _row(*parts: widgets.Widget, name: str = "cl-row") -> widgets.HBox:
        row = widgets.HBox(list(parts))
        row.add_class(name)
        return row

    @staticmethod
    def _scroller(part: widgets.Widget, height: str) -> widgets.VBox:
        """Make a box that stays scrolled to its place when its content changes."""
        box = widgets.VBox([part], layout=widgets.Layout(max_height=height, overflow="auto"))
        box.add_class("cl-scroller")
        return box

    # --- to look at ---------------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        """Offer the live widget, static HTML and plain text; the page takes the best that it can show."""
        bundle: dict[str, object] = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if self._closed:
            return bundle
        cells.show(self)
        return bundle | view(self.widget)


_viewed: set[Panel] = set()  # panels that a page shows: they are kept alive


def _close_all(widget: widgets.VBox) -> None:
    widget._view_count = None  # else the page would tell a closed comm that the panel is gone
    for part in list(parts(widget)):
        part.close()


def view(widget: widgets.Widget) -> dict[str, object]:
    """Return the MIME bundle of a live widget."""
    return {WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}}


def label(words: str) -> widgets.HTML:
    """Make a short heading for the start of a row of controls."""
    part = widgets.HTML(f"<span class='cl-label'>{escape(words)}</span>")
    return part


def set_options(dropdown: widgets.Dropdown, options: Sequence[tuple[str, object]]) -> None:
    """Set the options of a dropdown, (label, value) each, and keep what was chosen as long as it is among them."""
    if list(dropdown.options) == list(options):
        return
    chosen, values = dropdown.value, [value for _, value in options]
    with dropdown.hold_sync():
        dropdown.options = options
        dropdown.index = values.index(chosen) if chosen in values else 0 if values else None


def messages_html(messages: Iterable[Message]) -> str:
    """Draw the messages as HTML, newest first; screen readers announce a failure."""
    items = "".join(map(_item, reversed(list(messages))))
    return f"<ul class='cl-messages' aria-label='Messages'>{items}</ul>" if items else ""


def _item(message: Message) -> str:
    tone, sign, role = ("bad", "✕", " role='alert'") if message.failed else ("good", "✓", "")
    return (
        f"<li class='cl-{tone}'><span{role}><span class='cl-time'>{message.time}</span> "
        f"<span class='cl-sign' aria-hidden='true'>{sign}</span> <b>{text(message.action)}</b> "
        f"{text(message.said)}</span></li>"
    )


def _notice(over: str, broken: str) -> str:
    if over:
        return f"<div class='cl-notice' role='status'>{text(over)}</div>"
    if broken:
        return f"<div class='cl-notice cl-bad' role='alert'>cannot be refreshed: {text(broken)}</div>"
    return ""


def _style_sheet() -> widgets.HTML:
    sheet = files("copilotlab.widgets").joinpath("panel.css").read_text(encoding="utf-8")
    return widgets.HTML(f"<style>{sheet}</style>", layout=widgets.Layout(display="none"))


def parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """Yield a widget, all that is in it, and their layouts and styles: each has a comm of its own."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)
    for name in ("layout", "style"):
        if widget.has_trait(name):
            yield getattr(widget, name)
