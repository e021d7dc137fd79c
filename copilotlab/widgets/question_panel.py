"""What the two panels that ask questions have in common: the question, who is asked, and answers kept up to date."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from html import escape
from typing import Generic, NamedTuple, TypeVar

import ipywidgets as widgets

from copilotlab.charts import ChartRepository
from copilotlab.embedding import Embedder, available_embedders
from copilotlab.lab import Lab
from copilotlab.lifetime import Background
from copilotlab.markup import link, text
from copilotlab.node import Node
from copilotlab.protocol.follower import Completeness
from copilotlab.widgets.drawings import drawing
from copilotlab.widgets.model_index import Found, ModelIndex
from copilotlab.widgets.panel import Panel

MOST = 50  # charts in one answer

Request = TypeVar("Request", bound=NamedTuple)
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class NodeAnswer(NamedTuple):
    """What one node found, how long it took, and how much of the repository the node held then."""

    node_id: str
    found: list[Found]
    milliseconds: float
    completeness: Completeness | None = None

    @classmethod
    def of(cls, node: Node, question: str, k: int) -> NodeAnswer:
        """Ask ``node`` for the best ``k`` charts."""
        began = time.perf_counter()
        frame = node.search(question, k)
        milliseconds = 1000 * (time.perf_counter() - began)
        return cls(node.node_id, Found.of_frame(frame), milliseconds, frame.completeness)

    @property
    def chart_ids(self) -> tuple[int, ...]:
        """The ids of what was found, best first."""
        return tuple(found.chart_id for found in self.found)


class QuestionPanel(Panel, Generic[Request, Answer]):
    """A panel with a question. It is asked in a thread of its own, again whenever a node's vectors have changed.

    source: a Lab, a Node, or several nodes that share one catalogue.
    models: other models that may be asked, names or Embedders; by default all that are installed. The nodes' own model
    is left out, since the nodes answer for it.

    Raises ValueError where there is no node.
    """

    def __init__(self, source: Lab | Node | Sequence[Node], models: Sequence[str | Embedder] | None = None) -> None:
        super().__init__()
        self._source = source
        if not self.nodes:
            raise ValueError(f"{type(self).__name__}({source!r}): there is no node to ask; start the lab first")
        self.models = self._indexes(_installed() if models is None else models)
        self._busy = ""
        self._asking = False
        self._asked: tuple[Request, object] | None = None
        self._asked_at = 0.0
        self._answer: Answer | None = None

    # --- who is asked ---------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """The nodes that can be asked now."""
        if isinstance(self._source, Lab):
            return list(self._source.nodes)
        return [self._source] if isinstance(self._source, Node) else list(self._source)

    @property
    def charts(self) -> ChartRepository:
        """The catalogue of the nodes."""
        return self.nodes[0].charts

    @property
    def embedder(self) -> Embedder:
        """The model of the nodes."""
        return self.nodes[0].embedder

    def _indexes(self, models: Sequence[str | Embedder]) -> dict[str, ModelIndex]:
        own = self.embedder
        indexes: dict[str, ModelIndex] = {}
        for model in models:
            if own.name == model or (isinstance(model, Embedder) and own.fingerprint == model.fingerprint):
                continue
            name = model if isinstance(model, str) else model.name
            if name in (own.name, *indexes) and isinstance(model, Embedder):
                name = model.fingerprint  # another model of the same name
            indexes[name] = ModelIndex(self.charts, model, self._progress)
        return indexes

    def _over(self) -> str:
        if isinstance(self._source, Lab) and self._source.closed:
            return "This lab is closed: what is shown is its last answer."
        return ""

    # --- a panel of this kind ---------------------------------------------------------------------------------------

    @abstractmethod
    def _request(self) -> Request:
        """Return what is asked for, by the present values of the controls."""

    @abstractmethod
    def _find(self, request: Request) -> Answer:
        """Ask, in a thread in which it may take long."""

    @abstractmethod
    def _found_in(self, answer: Answer) -> list[Found]:
        """List all charts of an answer."""

    @abstractmethod
    def _show_answer(self, answer: Answer) -> None:
        """Bring the widgets below the question up to date."""

    # --- asking -----------------------------------------------------------------------------------------------------

    def _question_row(self, *more: widgets.Widget) -> widgets.HBox:
        self._question = widgets.Text(
            placeholder="Ask in your own words, then press Enter",
            description="Question",
            continuous_update=False,
            layout=widgets.Layout(width="auto", flex="1 1 18rem"),
        )
        self._k = widgets.BoundedIntText(
            value=10, min=1, max=MOST, description="Charts", layout=widgets.Layout(width="8.5rem")
        )
        ask = self._button("Ask", "Ask again", self._ask_again, icon="search")
        self._progress_line = self._html()
        row = self._row(self._question, self._k, *more, ask)
        self._follow(*(part for part in (self._question, self._k, *more) if part.has_trait("value")))
        return row

    def ask(self, question: str) -> None:
        """Put ``question`` into the panel, as if typed."""
        _ = self.widget
        self._question.value = question

    def _ask_again(self) -> str:
        self._asked = None
        return "asked"

    def _show(self) -> None:
        nodes = self.nodes
        held = tuple((node.node_id, node.store.digest, node.completeness, node.status()["state"]) for node in nodes)
        wanted = (self._request(), held)
        if self._question.value.strip() and wanted != self._asked and not self._asking and self._may_ask(wanted[0]):
            self._asking = True
            Background(partial(self._ask, *wanted), "copilotlab-panel-question").start()
        busy = text(self._busy) if self._busy else ""
        self._progress_line.value = f"<div class='cl-progress' role='status'>{busy}</div>"
        if self._answer is not None:
            self._show_answer(self._answer)

    def _may_ask(self, request: Request) -> bool:
        """Tell whether to ask now: at once for a new question; for new vectors at most once an interval."""
        asked = self._asked
        return asked is None or asked[0] != request or time.monotonic() - self._asked_at >= self.interval

    def _ask(self, request: Request, held: object) -> None:
        answer = self._attempt("ask", lambda: self._find(request))
        with self._lock:
            self._busy = ""
            self._answer = answer or self._answer
            # Where the repository was too slow to tell a title, the question is asked again after an interval.
            told = answer is None or all(found.title for found in self._found_in(answer))
            self._asked, self._asked_at, self._asking = (request, held if told else None), time.monotonic(), False
        self._changed()

    def _attempt(self, action: str, call: Callable[[], Result]) -> Result | None:
        """Return what ``call`` returns; where it fails, tell it in a message and return None."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - of the model, a node or the repository: a message tells it
            said = f"{type(error).__name__}: {error}"
            if (action, said) not in [(message.action, message.said) for message in self.messages]:
                self._tell(action, said, failed=True)  # once, although nodes that change are asked again and again
            return None

    def _progress(self, words: str) -> None:
        self._busy = words
        self._changed()


def chart_cell(found: Found) -> str:
    """Draw a chart in words: its title, which opens the chart where it has a link, or else its id; below it the
    measures by dimensions."""
    said = " by ".join(filter(None, [", ".join(found.measures), ", ".join(found.dimensions)]))
    small = f"<div class='cl-small'>{text(said)}</div>" if said else ""
    title = link(found.title or f"chart {found.chart_id}", found.url)
    return f"<div class='cl-chart-title'>{title}</div>{small}"


def score_cell(score: float) -> str:
    """Draw a cosine as a bar and a number."""
    share = round(100 * min(1.0, max(0.0, score)))
    return f"<span class='cl-bar' aria-hidden='true'><span style='width:{share}%'></span></span> {score:.3f}"


def answers_table(answer: list[Found]) -> str:
    """Draw charts as a ranked table; on a narrow page the type and the source of a chart go below its title."""
    head = "".join(
        f"<th scope='col'{style}>{name}</th>"
        for name, style in (
            ("#", " class='cl-number'"), ("<span class='cl-unseen'>drawing</span>", ""), ("chart", ""), ("score", ""),
            ("type", ""), ("source", "")
        )
    )  # fmt: skip
    cell = (
        "<td role='cell'"  # roles, since a narrow page lays rows out as grids, and tells them as tables none the less
    )
    rows = "".join(
        f"<tr role='row'>{cell} class='cl-number'>{rank}</td>{cell}>{drawing(found.chart_type)}</td>"
        f"{cell} class='cl-chart'>{chart_cell(found)}</td>{cell} class='cl-score'>{score_cell(found.score)}</td>"
        f"{cell} class='cl-type'>{text(found.chart_type or '—')}</td>{cell}>{text(found.source or '—')}</td></tr>"
        for rank, found in enumerate(answer, start=1)
    )
    start = "<table class='cl-table cl-answers cl-ranked' role='table' aria-label='Answers'>"
    return f"{start}<thead><tr>{head}</tr></thead><tbody role='rowgroup'>{rows}</tbody></table>"


def incomplete_html(answers: Iterable[NodeAnswer]) -> str:
    """Say which of these nodes lacked charts when it was asked, how many, and why; nothing where none did."""
    return "".join(
        f"<div class='cl-warn cl-incomplete'><span aria-hidden='true'>▲</span> {text(answer.node_id)} is not complete, "
        f"charts may be missing below: it holds {text(answer.completeness)}</div>"
        for answer in answers
        if answer.completeness is not None and not answer.completeness.complete
    )


def chip(words: str, *, tone: str, title: str = "") -> str:
    """Draw a few words in a rounded frame."""
    return f"<span class='cl-chip cl-{tone}' title='{escape(title)}'>{text(words)}</span>"


@cache
def _installed() -> tuple[str, ...]:
    # Once a process: it takes a second, since files of weights are hashed.
    frame = available_embedders()
    return tuple(frame.filter(frame["installed"])["name"])
