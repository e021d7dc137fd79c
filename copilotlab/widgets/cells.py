"""Which cell of a notebook shows what: a cell that is run again takes off the page what its last run showed.

A kernel keeps for ever what it has displayed (`Out`), and ipywidgets keeps every widget that was made. So a panel that
a cell shows is noted here, and told when no cell shows it any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from IPython import get_ipython


class Showable(Protocol):
    """What a cell can show."""

    def off_the_page(self) -> None:
        """Take note that no cell shows it any more."""
        ...


class _Cells:
    """The cells of one shell, and what the last run of each showed."""

    def __init__(self, shell: Any) -> None:
        self._shown: dict[str, list[Showable]] = {}
        self._former: list[Showable] = []
        self._running = _running_now(shell)
        shell.events.register("pre_run_cell", self._begin)
        shell.events.register("post_run_cell", self._end)

    def show(self, thing: Showable) -> None:
        here = self._shown.setdefault(self._running, [])
        if not any(other is thing for other in here):
            here.append(thing)

    def _begin(self, info: Any) -> None:
        self._running = info.cell_id or info.raw_cell
        self._former = self._shown.pop(self._running, [])

    def _end(self, _result: object) -> None:
        former, self._former = self._former, []
        shown = {id(thing) for things in self._shown.values() for thing in things}
        for thing in former:
            if id(thing) not in shown:
                thing.off_the_page()


_cells: weakref.WeakKeyDictionary[Any, _Cells] = weakref.WeakKeyDictionary()


def show(thing: Showable) -> None:
    """Note that the cell that is running shows ``thing``; do nothing outside of IPython."""
    shell = get_ipython()
    if shell is not None:
        if shell not in _cells:
            _cells[shell] = _Cells(shell)
        _cells[shell].show(thing)


def weakly(method: Callable[..., object]) -> Callable[..., None]:
    """Wrap a method for a widget to call, without keeping its owner alive; call nothing once the owner is gone."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: object) -> None:
        alive = reference()
        if alive is not None:
            alive(*arguments)

    return call


def _running_now(shell: Any) -> str:
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell_id = (parent.get("metadata") or {}).get("cellId") if isinstance(parent, dict) else None
    raw = shell.history_manager.input_hist_raw if shell.history_manager is not None else []
    return cell_id or (raw[-1] if raw else "")
