"""An answer below its controls: change one of them, and a new answer is shown."""

from __future__ import annotations

import logging
import threading
import weakref
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from inspect import isgenerator
from typing import Any, Self

import ipywidgets as widgets
from IPython import get_ipython
from IPython.core.formatters import DisplayFormatter
from IPython.display import display

from copilotlab.lifetime import Background
from copilotlab.widgets import cells
from copilotlab.widgets.cells import weakly
from copilotlab.widgets.panel import parts, view

WORKING = "<span role='status' style='opacity:.7'>working ...</span>"

logger = logging.getLogger(__name__)


class LiveAnswer:
    """What a function returns for the values of some controls, shown below them, and anew whenever one is changed.

        LiveAnswer(drawn, {"field": widgets.Dropdown(options=["fenced", "ordered"])})

    function: called with the controls' values by name. It returns what to show, or a tuple of things to show one below
    the other; or it yields such answers, each of which replaces the one before, so that long work is seen as it goes.
    controls: widgets with a value, by the names of the function's parameters. box: a widget of your own that shows
    them; by default one below the other. start: a button; with it the function is called when the button is pressed,
    not at each change.

    The first answer is made at once, and raises what goes wrong. Later ones are made in a thread, so that the kernel
    stays free; where changes come faster than answers, only the last change is answered, and what goes wrong is shown
    in place of the answer. Show it as the last line of a cell, in JupyterLab or under Voila. Where there is no widget
    manager, the first answer stays, each thing as an output of its own (`ipywidgets.interactive_output` would leave
    nothing there). Close it with `close` or as a context manager. It closes itself when nobody holds it any more, and
    when the cell that shows it is run again; controls that another LiveAnswer uses by then stay open.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        controls: Mapping[str, widgets.Widget],
        *,
        box: widgets.Widget | None = None,
        start: widgets.Button | None = None,
    ) -> None:
        self._function = function
        self._controls = dict(controls)
        self._start = start
        self._lock = threading.RLock()  # guards the next three, and all that is shown
        self._wanted: dict[str, Any] | None = None  # the last change that nobody has begun to answer
        self._working = False
        self._closed = False
        *_, first = self._answers(self._values())
        self._places = [widgets.Output(outputs=(output,)) for output in _outputs(first)]
        self._notice = widgets.HTML(layout={"min_height": "1.8em"})  # so that what is below does not move
        self._top = widgets.VBox([widgets.VBox(list(self._controls.values())) if box is None else box, self._notice])
        if start is not None:
            start.on_click(weakly(self._ask))
        else:
            for control in self._controls.values():
                control.observe(weakly(self._ask), "value")
        others = [] if start is None else [start]
        self._widgets = [self._top, *self._places, *self._controls.values(), *others]
        weakref.finalize(self, _close_what_nobody_has, self._widgets).atexit = False
        _open[id(self)] = self

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Take it off every page, and close all its widgets, with the controls, the box and the button.

        An answer that is under way is dropped as soon as it yields or returns. Closing twice does nothing.
        """
        if self._end():
            for widget in self._widgets:
                for part in list(parts(widget)):
                    part.close()

    def off_the_page(self) -> None:
        """Close it, since no cell shows it any more, but for what another LiveAnswer uses."""
        if self._end():
            _close_what_nobody_has(self._widgets)

    def _end(self) -> bool:
        """Answer no more; return False if it had ended already."""
        with self._lock:
            closed, self._closed = self._closed, True
            self._wanted = None
            _open.pop(id(self), None)
        return not closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self._controls.items()}

    def _ask(self, _: object) -> None:
        with self._lock:
            if self._closed:
                return
            self._wanted = self._values()
            if self._working:
                return
            self._working = True
            self._notice.value = WORKING
        Background(self._work, "copilotlab-live-answer").start()

    def _work(self) -> None:
        while (values := self._next()) is not None:
            self._answer(values)

    def _next(self) -> dict[str, Any] | None:
        with self._lock:
            values, self._wanted = self._wanted, None
            if values is None:
                self._notice.value = ""
                self._working = False  # last: by then all that is shown is final
            return values

    def _answer(self, values: dict[str, Any]) -> None:
        try:
            with closing(self._answers(values)) as answers:
                for answer in answers:
                    self._show(_outputs(answer))
                    if self._closed or self._wanted is not None:
                        break
        except Exception as error:  # this is the end of a thread: the page shows it
            logger.debug("no answer to %s", values, exc_info=error)
            said = f"{type(error).__name__}: {error}"
            failed = {"output_type": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": [said]}
            self._show([failed, *[None] * (len(self._places) - 1)])

    def _answers(self, values: dict[str, Any]) -> Generator[Any, None, None]:
        answer = self._function(**values)
        if isgenerator(answer):
            yield from answer
        else:
            yield answer

    def _show(self, outputs: Sequence[dict[str, Any] | None]) -> None:
        with self._lock:
            if not self._closed:
                for place, output in zip(self._places, outputs, strict=True):
                    place.outputs = () if output is None else (output,)

    def _bundles(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield what a page gets: the controls, then each thing, both live and static."""
        live = (lambda _: {}) if self._closed else view
        yield {"text/plain": repr(self), **live(self._top)}, {}
        for place in self._places:
            output = place.outputs[0] if place.outputs else {}
            yield {"text/plain": "", **output.get("data", {}), **live(place)}, output.get("metadata", {})

    def _ipython_display_(self) -> None:
        if not self._closed:
            cells.show(self)
        for data, metadata in self._bundles():
            display(data, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        facts = [*(f"{name}={value!r}" for name, value in self._values().items()), *["closed"] * self._closed]
        return f"LiveAnswer({', '.join(facts)})"


_open: weakref.WeakValueDictionary[int, LiveAnswer] = weakref.WeakValueDictionary()


def _close_what_nobody_has(closing: list[widgets.Widget]) -> None:
    """Close these widgets, and what is in them, except those that an open LiveAnswer uses."""
    kept = {id(part) for answer in list(_open.values()) for widget in answer._widgets for part in parts(widget)}
    for widget in closing:
        for part in list(parts(widget)):
            if id(part) not in kept:
                part.close()


def _outputs(answer: Any) -> list[dict[str, Any]]:
    return [_output(thing) for thing in (answer if isinstance(answer, tuple) else (answer,))]


def _output(thing: Any) -> dict[str, Any]:
    """Turn ``thing`` into an output as notebooks keep it; unlike IPython, raise what fails in drawing it."""
    if hasattr(thing, "_repr_mimebundle_"):
        made = thing._repr_mimebundle_(include=None, exclude=None)
        data, metadata = made if isinstance(made, tuple) else (made, {})
    else:
        shell = get_ipython()
        data, metadata = (shell.display_formatter if shell else DisplayFormatter()).format(thing)
    shown = {kind: b64encode(value).decode() if isinstance(value, bytes) else value for kind, value in data.items()}
    return {"output_type": "display_data", "data": {"text/plain": repr(thing), **shown}, "metadata": metadata}
