"""The main job in one minute: four nodes, a real server, a catalogue; the server dies and comes back empty.

Every printed claim was checked; the exit code is 1 if one did not hold. The catalogue is the one that ships, or the
reader's own; the story is the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from copilotlab.charts import Chart
from copilotlab.embedding import DEFAULT_MODEL
from copilotlab.importers import CatalogueError, read_catalogue
from copilotlab.lab import catalogue
from copilotlab.lab.agreement import alike
from copilotlab.lab.lab import Lab, NotConverged
from copilotlab.monitoring.agreement import short
from copilotlab.node import Node
from copilotlab.protocol.policy import Policy

# Five of the questions that ship, as people ask them: the chart that answers has hardly any of their words.
QUESTIONS = (
    "wage difference between men and women at senior level",
    "stolen by phishing and scams each month, net of what we clawed back",
    "cranes and diggers doing nothing",
    "are enough nurses turning up for night and weekend duty on the wards",
    "do people with a suspected tumour begin chemo soon enough?",
)

FEWEST_CHARTS = 3
"""Of the reader's own: two are deleted on the way, and something must be left to ask for."""

ESPRESSO = "Espresso machine uptime by office floor"
KETTLE = "Tea kettle uptime by office floor"

# A busy laptop is not an outage: the demo waits longer for an answer than a service would.
POLICY = Policy(redis_timeout=2.0)


@dataclass(frozen=True)
class Script:
    """What the story is told with.

    charts: a frame. questions: five, or as many as there are titles. about: what is said of the charts at the
    beginning, a line each. by_meaning: whether what is made on the way is asked for in other words than its own.
    """

    charts: pl.DataFrame
    questions: tuple[str, ...]
    about: tuple[str, ...] = ()
    by_meaning: bool = True


def own_script(path: str | Path, format: str | None = None) -> Script:
    """Return the story on the charts of an export or table, as `read_catalogue` takes it; questions are their titles.

    Raises CatalogueError for one that cannot be read, or has fewer than `FEWEST_CHARTS` charts of different titles.
    """
    charts = read_catalogue(path, format)
    titles = charts.frame["title"].unique(maintain_order=True).to_list()
    if len(titles) < FEWEST_CHARTS:
        raise CatalogueError(
            f"{path} has {len(titles):,} charts of different titles: the demo needs at least {FEWEST_CHARTS}"
        )
    about = (
        repr(charts),
        "Left out: that meaning finds what words do not. Nobody has said which of your charts answer which question, "
        "so they are asked for by their own titles.",
    )
    apart = max(1, len(titles) // len(QUESTIONS))
    return Script(charts.frame, tuple(titles[::apart][: len(QUESTIONS)]), about, by_meaning=False)


def run_demo(
    *, nodes: int = 4, model: str = DEFAULT_MODEL, charts: str | Path | None = None, format: str | None = None
) -> int:
    """Run the demo and return 0 if every claim held, else 1.

    charts: an export or table of your own, as `read_catalogue` takes it (the catalogue that ships). format: of it;
    None finds it by looking. Raises CatalogueError, and what `load_embedder` and `LocalRedis` raise.
    """
    script = Script(catalogue.charts(), QUESTIONS) if charts is None else own_script(charts, format)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # plain text, in a log or a file
    demo = _Demo(console, script)
    began = time.monotonic()
    console.print(f"[bold]copilotlab[/]: {nodes} nodes, {script.charts.height:,} charts, the model {model}")
    for line in script.about:
        console.print(line, markup=False)
    with console.status(f"loading {model} ..."):
        lab = Lab(nodes=nodes, model=model, charts=script.charts, policy=POLICY)
    try:
        lab.start(progress=True)
        demo.agree(lab, f"{nodes} nodes on {lab.redis.kind} {lab.redis.version} hold {len(lab.charts):,} charts")
        demo.ask(lab)
        demo.edit(lab)
        demo.outage(lab)
    finally:
        lab.close()
    held = all(demo.claims)
    console.print(
        f"\n[bold]{'all' if held else 'NOT all'} {len(demo.claims)} claims held[/], "
        f"{time.monotonic() - began:.1f} s in all"
    )
    return 0 if held else 1


class _Demo:
    """The acts of the demo, and whether each of their claims held."""

    def __init__(self, console: Console, script: Script) -> None:
        self.console = console
        self.script = script
        self.claims: list[bool] = []
        taken = set(script.charts["chart_id"])
        self.made, self.made_later = islice((i for i in count(10_000_000) if i not in taken), 2)
        self.k = min(5, script.charts.height)  # charts of an answer

    def question(self, number: int) -> str:
        return self.script.questions[number % len(self.script.questions)]

    def delete_found(self, node: Node, question: str) -> tuple[int, str]:
        """Delete the chart that a node finds first, of those that there were; return its id, and the outcome."""
        found = node.search(question, k=3)["chart_id"].to_list()
        gone = next(chart_id for chart_id in found if chart_id not in (self.made, self.made_later))
        return gone, node.delete_chart(gone).outcome

    def claim(self, text: str, holds: bool) -> None:
        self.claims.append(holds)
        self.console.print(f"  {'[green]yes[/]' if holds else '[bold red]NO [/]'}  {text}")

    def agree(self, lab: Lab, text: str, timeout: float = 30.0) -> None:
        try:
            seconds = lab.wait_converged(timeout)
        except NotConverged as error:
            self.claim(f"{text}: {error}", False)
        else:
            digest = short(lab.nodes[0].store.digest)
            self.claim(f"{text}, alike to the last bit (digest {digest}, after {seconds * 1000:,.0f} ms)", True)

    def ask(self, lab: Lab) -> None:
        table = Table(title="\nQuestions, each asked on another node", title_justify="left")
        for name in ("node", "question", "best chart", "score", "ms"):
            table.add_column(name, justify="right" if name in ("score", "ms") else "left")
        for number, question in enumerate(self.script.questions):
            node = lab.living[number % len(lab.living)]
            began = time.perf_counter()
            best = node.search(question, k=1).row(0, named=True)
            milliseconds = (time.perf_counter() - began) * 1000
            row = (node.node_id, question, best["title"], f"{best['score']:.2f}", f"{milliseconds:.0f}")
            table.add_row(*map(escape, row))
        self.console.print(table)
        first, *others = (node.search(self.question(0), k=self.k)["chart_id"].to_list() for node in lab.living)
        many = {3: "three", 4: "four", 5: "five"}[self.k]
        self.claim(f"every node gives the same {many} charts for the first question", all(o == first for o in others))

    def edit(self, lab: Lab) -> None:
        self.console.print("\n[bold]Edits[/] on one node, followed by the others")
        writer, reader = lab.nodes[0], lab.nodes[-1]
        made = self.made
        began = time.perf_counter()
        outcome = writer.update_chart(
            Chart(chart_id=made, title=ESPRESSO, chart_type="bar", tags=("facilities",))
        ).outcome
        self._wait(lambda: all(made in node.store for node in lab.nodes))
        milliseconds = (time.perf_counter() - began) * 1000
        asked = "is the coffee working on my floor" if self.script.by_meaning else ESPRESSO
        found = reader.search(asked, k=1)
        self.claim(
            f"a new chart was {outcome} by {writer.node_id} and found on {reader.node_id} ({milliseconds:.0f} ms)",
            outcome == "published" and found["chart_id"].to_list() == [made],
        )
        gone, _ = self.delete_found(lab.nodes[1], self.question(0))
        self._wait(lambda: not any(gone in node.store for node in lab.nodes))
        still = gone in reader.search(self.question(0), k=10)["chart_id"].to_list()
        self.claim(f"a chart deleted on {lab.nodes[1].node_id} is no longer found on {reader.node_id}", not still)
        self.agree(lab, "all nodes agree again")

    def outage(self, lab: Lab) -> None:
        self.console.print("\n[bold]Outage[/]: the server is killed (SIGKILL)")
        lab.redis.kill()
        outcomes: list[str] = []
        slowest = 0.0
        edits = ((self.made, KETTLE), (self.made_later, "Oat milk stock by week"))
        for node, (chart_id, title) in zip(lab.nodes[:2], edits, strict=True):
            outcomes.append(node.update_chart(Chart(chart_id=chart_id, title=title)).outcome)
        for node in lab.nodes:
            began = time.perf_counter()
            answers = node.search(f"{self.question(1)}, asked of {node.node_id}", k=self.k).height
            slowest = max(slowest, time.perf_counter() - began)
            outcomes.append("answered" if answers == self.k else "silent")
        outcomes.append(self.delete_found(lab.nodes[1], self.question(2))[1])
        expected = ["local", "local", *["answered"] * len(lab.nodes), "local"]
        self.claim(
            f"without Redis, every node answers (slowest {slowest * 1000:.0f} ms), two edits and a deletion are kept",
            outcomes == expected,
        )
        self._wait(lambda: not any(node.coordinator.connected for node in lab.nodes))
        self.claim(
            "the nodes know that they differ, and say that Redis is away",
            not alike(lab.nodes) and all(node.status()["redis"] == "away" for node in lab.nodes),
        )
        embedded = self._embeddings(lab)
        self.console.print("  the server comes back, [bold]empty[/]")
        lab.redis.start(keep_data=False)
        self.agree(lab, "back: all nodes agree by themselves")
        again = self._embeddings(lab) - embedded
        asked = "where is the tea kettle working" if self.script.by_meaning else KETTLE
        found = lab.nodes[-1].search(asked, k=1)["chart_id"].to_list()
        self.claim(
            f"what was edited meanwhile is found on {lab.nodes[-1].node_id}; "
            f"{again} of {len(lab.charts):,} charts were embedded again",
            found == [self.made] and again <= 2 * len(lab.nodes),
        )
        self.console.print(self._table(lab))

    @staticmethod
    def _embeddings(lab: Lab) -> int:
        return sum(node.context.metrics["embeddings"] for node in lab.nodes)

    @staticmethod
    def _table(lab: Lab) -> Table:
        table = Table(title="\nThe nodes", title_justify="left")
        for name in ("node", "charts", "digest", "redis", "embedded", "searches", "received", "dropped"):
            table.add_column(name)
        for node in lab.nodes:
            status, counters = node.status(), node.context.metrics.as_dict()
            dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
            table.add_row(
                node.node_id,
                f"{status['charts']:,}",
                short(status["digest"]),
                str(status["redis"]),
                *(f"{counters.get(name, 0):,}" for name in ("embeddings", "searches", "received")),
                str(dropped),
            )
        return table

    @staticmethod
    def _wait(condition, timeout: float = 10.0) -> None:  # type: ignore[no-untyped-def]
        until = time.monotonic() + timeout
        while not condition() and time.monotonic() < until:
            time.sleep(0.001)
