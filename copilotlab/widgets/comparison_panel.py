"""Ask every node and several models at once, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import ipywidgets as widgets

from copilotlab.embedding import Embedder
from copilotlab.lab import Lab
from copilotlab.markup import text
from copilotlab.node import Node
from copilotlab.widgets.drawings import drawing
from copilotlab.widgets.model_index import Found, shared
from copilotlab.widgets.question_panel import NodeAnswer, QuestionPanel, chart_cell, chip, incomplete_html

COLUMN_WIDTH = 14  # rem; the table scrolls where the page is narrower


class ComparisonRequest(NamedTuple):
    """A question to all nodes and these models, and how many charts each is to find."""

    question: str
    models: tuple[str, ...]
    k: int


class Column(NamedTuple):
    """One answer, and all nodes, or the model, that gave it."""

    nodes: tuple[str, ...]
    model: str
    found: list[Found]


class ComparisonAnswer(NamedTuple):
    """The answers side by side: first the one that most nodes give, then those of other nodes, then those of models.

    nodes: what each node answered.
    """

    request: ComparisonRequest
    columns: list[Column]
    nodes: list[NodeAnswer]


class ComparisonPanel(QuestionPanel[ComparisonRequest, ComparisonAnswer]):
    """One question to every node and to several models at once, the answers side by side.

        ComparisonPanel(lab, models=["hash", "wordllama"])

    Nodes that answer alike share a column, so one column for all nodes means that they agree. Each chart shows its
    rank in the first column. models: names or Embedders, all ticked from the start. Without it all that are installed
    are offered, none ticked, since a model's first answer has to wait until the model has embedded every chart.
    """

    def __init__(self, source: Lab | Node | Sequence[Node], models: Sequence[str | Embedder] | None = None) -> None:
        super().__init__(source, models)
        self._ticked = models is not None

    def _build(self) -> list[widgets.Widget]:
        self._ticks = [
            widgets.Checkbox(value=self._ticked, description=name, indent=False, layout=widgets.Layout(width="auto"))
            for name in self.models
        ]
        row = self._question_row()
        ticks = self._row(*self._ticks, name="cl-ticks")
        self._follow(*self._ticks)
        self._table = self._html("cl-comparison")
        return [row, ticks, self._progress_line, self._scroller(self._table, "44rem")]

    def _request(self) -> ComparisonRequest:
        ticked = tuple(tick.description for tick in self._ticks if tick.value)
        return ComparisonRequest(self._question.value.strip(), ticked, self._k.value)

    def _find(self, request: ComparisonRequest) -> ComparisonAnswer:
        alike: defaultdict[tuple[int, ...], list[NodeAnswer]] = defaultdict(list)
        living = [node for node in self.nodes if node.status()["state"] != "stopped"]
        nodes = [NodeAnswer.of(node, request.question, request.k) for node in living]
        for answer in nodes:
            alike[answer.chart_ids].append(answer)
        groups = sorted(alike.values(), key=lambda group: -len(group))
        own = self.embedder.name
        columns = [Column(tuple(node.node_id for node in group), own, group[0].found) for group in groups]
        for name in request.models:
            found = self._attempt(f"ask {name}", partial(self.models[name].search, request.question, request.k))
            if found is not None:
                columns.append(Column((), name, found))
        return ComparisonAnswer(request, columns, nodes)

    def _found_in(self, answer: ComparisonAnswer) -> list[Found]:
        return [found for column in answer.columns for found in column.found]

    def _show_answer(self, answer: ComparisonAnswer) -> None:
        self._table.value = comparison_html(answer)

    def _repr_html_(self) -> str:
        if self._answer is None:
            return "<p>A comparison panel; nothing was asked yet. It is live where there is a widget manager.</p>"
        return comparison_html(self._answer)

    def __repr__(self) -> str:
        asked = f", {self._answer.request.question!r}" if self._answer is not None else ""
        who = f"{len(self.nodes)} nodes, {len(self.models)} models"
        return f"ComparisonPanel({who}{asked}{', closed' if self.closed else ''})"


def comparison_html(answer: ComparisonAnswer) -> str:
    """Draw the answers as one table: a row for each rank, a column for each answer; above it, who lacked charts."""
    if not answer.columns:
        return "<p class='cl-empty'>no node is alive, and no model is ticked</p>"
    first = answer.columns[0]
    ranks = {found.chart_id: rank for rank, found in enumerate(first.found, start=1)}
    head = "".join(f"<th scope='col'>{_head(column, first)}</th>" for column in answer.columns)
    rows = "".join(
        f"<tr><td class='cl-number'>{rank}</td>"
        + "".join(f"<td>{_cell(column, rank, ranks, column is first)}</td>" for column in answer.columns)
        + "</tr>"
        for rank in range(1, max(len(column.found) for column in answer.columns) + 1)
    )
    wide = f"min-width:{COLUMN_WIDTH * len(answer.columns)}rem"
    classes = "cl-table cl-answers cl-compared"
    lacking = incomplete_html(answer.nodes)
    said = f"<div role='status'>{lacking}</div>" if lacking else ""
    return (
        f"{said}"
        f"<table class='{classes}' style='{wide}' aria-label='Answers side by side'>"
        f"<thead><tr><th scope='col' class='cl-number'>#</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _head(column: Column, first: Column) -> str:
    who = " ".join(chip(node, tone="strong") for node in column.nodes) or chip(column.model, tone="strong")
    kind = f"{column.model}, from memory" if column.nodes else "model, over the repository"
    if column is first:
        return f"{who}<div class='cl-small'>{text(kind)}</div>"
    both = f"{shared(column.found, first.found)} of {len(first.found)} shared with the first column"
    return f"{who}<div class='cl-small'>{text(kind)}; {text(both)}</div>"


def _cell(column: Column, rank: int, ranks: dict[int, int], reference: bool) -> str:
    if rank > len(column.found):
        return ""
    found = column.found[rank - 1]
    return (
        f"<div class='cl-hit'>{drawing(found.chart_type)}<div>{chart_cell(found)}"
        f"<div class='cl-small'>{found.score:.3f}{'' if reference else _place(rank, ranks.get(found.chart_id))}</div>"
        "</div></div>"
    )


def _place(rank: int, other: int | None) -> str:
    """Tell where the first column has this chart."""
    if other is None:
        return " · <span class='cl-warn'>only here</span>"
    if other == rank:
        return " · <span class='cl-same'>same place</span>"
    return f" · {'▲' if rank < other else '▼'} from {other}"
