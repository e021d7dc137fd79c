"""Names for screen readers, and keys between the buttons of a card: what ipywidgets has no trait for."""

from __future__ import annotations

from importlib.resources import files

import anywidget
import ipywidgets as widgets
import traitlets

_SCRIPT = files("copilotlab.widgets").joinpath("reach.js").read_text(encoding="utf-8")


class Reach(anywidget.AnyWidget):
    """An invisible part of a panel that names its buttons and scrollers, and makes each card one stop of the Tab key.

    Where a page cannot run it, every button stays a stop of its own, named by its words and, in its tooltip, by whom it
    concerns.
    """

    _esm = traitlets.Unicode(_SCRIPT).tag(sync=True)

    def __init__(self) -> None:
        super().__init__(layout=widgets.Layout(display="none"))
