"""Ask one node, and see what it finds and whether the others find the same."""

from __future__ import annotations

from typing import NamedTuple

import ipywidgets as widgets

from copilotlab.widgets.model_index import Found, shared
from copilotlab.widgets.panel import set_options
from copilotlab.widgets.question_panel import NodeAnswer, QuestionPanel, answers_table, chip, incomplete_html


class SearchRequest(NamedTuple):
    """A question, the index of the node to ask, the model ("" for the node's own), and how many charts to find."""

    question: str
    node: int
    model: str
    k: int


class SearchAnswer(NamedTuple):
    """What was found: by the node or the model that was asked, and by every node."""

    request: SearchRequest
    asker: str
    found: list[Found]
    milliseconds: float | None
    nodes: list[NodeAnswer]


class SearchPanel(QuestionPanel[SearchRequest, SearchAnswer]):
    """The copilot: a question, a node, a model, and ranked charts; beside them, which nodes agree.

        SearchPanel(lab)                       # or SearchPanel(node), SearchPanel([node, other])
        SearchPanel(lab, models=["wordllama"])  # offer only these besides the cluster's own model

    The node answers from its own memory. Other models than the cluster's search the repository's charts in this
    process; the first answer of each has to wait until every chart is embedded. Raises ValueError where there is no
    node.
    """

    def _build(self) -> list[widgets.Widget]:
        self._node = widgets.Dropdown(options=self._offered(), description="Node", layout=widgets.Layout(width="10rem"))
        self._model = widgets.Dropdown(
            options=[(f"{self.embedder.name} (the nodes')", ""), *((name, name) for name in self.models)],
            description="Model",
            layout=widgets.Layout(width="13rem"),
        )
        row = self._question_row(self._node, self._model)
        self._summary, self._found = self._html(), self._html()
        return [row, self._progress_line, self._summary, self._scroller(self._found, "40rem")]

    def _offered(self) -> list[tuple[str, object]]:
        """The nodes that can be asked: those that were not stopped, or all where all were."""
        nodes = self.nodes
        everybody: list[tuple[str, object]] = [(node.node_id, index) for index, node in enumerate(nodes)]
        running = [node.status()["state"] != "stopped" for node in nodes]
        return [option for option, runs in zip(everybody, running, strict=True) if runs] or everybody

    def _show(self) -> None:
        set_options(self._node, self._offered())
        super()._show()

    def _request(self) -> SearchRequest:
        return SearchRequest(self._question.value.strip(), self._node.value, self._model.value, self._k.value)

    def _find(self, request: SearchRequest) -> SearchAnswer:
        living = [node for node in self.nodes if node.status()["state"] != "stopped"]
        asked = self.nodes[request.node]
        own = NodeAnswer.of(asked, request.question, request.k)
        nodes = [own if node is asked else NodeAnswer.of(node, request.question, request.k) for node in living]
        if not request.model:
            return SearchAnswer(request, own.node_id, own.found, own.milliseconds, nodes)
        found = self.models[request.model].search(request.question, request.k)
        return SearchAnswer(request, request.model, found, None, nodes)

    def _found_in(self, answer: SearchAnswer) -> list[Found]:
        return answer.found

    def _show_answer(self, answer: SearchAnswer) -> None:
        self._summary.value = agreement_html(answer)
        self._found.value = answers_table(answer.found)

    def _repr_html_(self) -> str:
        if self._answer is None:
            return "<p>A search panel; nothing was asked yet. It is live where there is a widget manager.</p>"
        return agreement_html(self._answer) + answers_table(self._answer.found)

    def __repr__(self) -> str:
        asked = f", {self._answer.request.question!r}" if self._answer is not None else ""
        return f"SearchPanel({len(self.nodes)} nodes{asked}{', closed' if self.closed else ''})"


def agreement_html(answer: SearchAnswer) -> str:
    """Say who was asked, for every node in a chip whether it gives the same charts in the same order, and who lacked
    charts."""
    wanted = tuple(found.chart_id for found in answer.found)
    chips = []
    alike = 0
    for node in answer.nodes:
        same = node.chart_ids == wanted
        alike += same
        if same:
            chips.append(chip(f"{node.node_id} ✓", tone="good", title="the same charts in the same order"))
        elif set(node.chart_ids) == set(wanted):
            chips.append(chip(f"{node.node_id} ≈", tone="warn", title="the same charts in another order"))
        else:
            count = shared(node.found, answer.found)
            said = f"{count} of these {len(wanted)} charts"
            chips.append(chip(f"{node.node_id} ≠ {count}/{len(wanted)}", tone="warn", title=said))
    took = "" if answer.milliseconds is None else f" in {answer.milliseconds:.1f} ms"
    agree = "all nodes give these" if alike == len(answer.nodes) else f"{alike} of {len(answer.nodes)} nodes give these"
    return (
        f"<div class='cl-summary' role='status'><b>{chip(answer.asker, tone='strong')}</b> "
        f"<span>found {len(wanted)} charts{took}; {agree}</span> {' '.join(chips)}"
        f"{incomplete_html(answer.nodes)}</div>"
    )
