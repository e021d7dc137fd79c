"""The main job in one minute: four nodes, a real server, the shipped catalogue; the server dies and comes back empty.

Every printed claim was checked; the exit code is 1 if one did not hold.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from copilotlab.charts import Chart
from copilotlab.lab import catalogue
from copilotlab.lab.agreement import alike
from copilotlab.lab.lab import Lab, NotConverged
from copilotlab.monitoring.agreement import short
from copilotlab.protocol.policy import Policy

# Five of the questions that ship, as people ask them: the chart that answers has hardly any of their words.
QUESTIONS = (
    "wage difference between men and women at senior level",
    "stolen by phishing and scams each month, net of what we clawed back",
    "cranes and diggers doing nothing",
    "are enough nurses turning up for night and weekend duty on the wards",
    "do people with a suspected tumour begin chemo soon enough?",
)

# A busy laptop is not an outage: the demo waits longer for an answer than a service would.
POLICY = Policy(redis_timeout=2.0)


def run_demo(*, nodes: int = 4, model: str = "minilm-int8") -> int:
    """Run the demo and return 0 if every claim held, else 1. Raises what `load_embedder` and `LocalRedis` raise."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # plain text, in a log or a file
    demo = _Demo(console)
    began = time.monotonic()
    charts = catalogue.charts()
    console.print(f"[bold]copilotlab[/]: {nodes} nodes, {charts.height:,} charts, the model {model}")
    with console.status(f"loading {model} ..."):
        lab = Lab(nodes=nodes, model=model, charts=charts, policy=POLICY)
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

    def __init__(self, console: Console) -> None:
        self.console = console
        self.claims: list[bool] = []

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
        for number, question in enumerate(QUESTIONS):
            node = lab.living[number % len(lab.living)]
            began = time.perf_counter()
            best = node.search(question, k=1).row(0, named=True)
            milliseconds = (time.perf_counter() - began) * 1000
            table.add_row(node.node_id, question, best["title"], f"{best['score']:.2f}", f"{milliseconds:.0f}")
        self.console.print(table)
        first, *others = (node.search(QUESTIONS[0], k=5)["chart_id"].to_list() for node in lab.living)
        self.claim("every node gives the same five charts for the first question", all(o == first for o in others))

    def edit(self, lab: Lab) -> None:
        self.console.print("\n[bold]Edits[/] on one node, followed by the others")
        writer, reader = lab.nodes[0], lab.nodes[-1]
        made = 10_000_000
        title = "Espresso machine uptime by office floor"
        began = time.perf_counter()
        outcome = writer.update_chart(Chart(chart_id=made, title=title, chart_type="bar", tags=("facilities",))).outcome
        self._wait(lambda: all(made in node.store for node in lab.nodes))
        milliseconds = (time.perf_counter() - began) * 1000
        found = reader.search("is the coffee working on my floor", k=1)
        self.claim(
            f"a new chart was {outcome} by {writer.node_id} and found on {reader.node_id} ({milliseconds:.0f} ms)",
            outcome == "published" and found["chart_id"].to_list() == [made],
        )
        gone = lab.nodes[1].search(QUESTIONS[0], k=1)["chart_id"][0]
        outcome = lab.nodes[1].delete_chart(gone).outcome
        self._wait(lambda: not any(gone in node.store for node in lab.nodes))
        still = gone in reader.search(QUESTIONS[0], k=10)["chart_id"].to_list()
        self.claim(f"a chart deleted on {lab.nodes[1].node_id} is no longer found on {reader.node_id}", not still)
        self.agree(lab, "all nodes agree again")

    def outage(self, lab: Lab) -> None:
        self.console.print("\n[bold]Outage[/]: the server is killed (SIGKILL)")
        lab.redis.kill()
        edited = lab.charts.get(10_000_000)
        assert edited is not None
        outcomes: list[str] = []
        slowest = 0.0
        for node, title in zip(
            lab.nodes[:2], ("Tea kettle uptime by office floor", "Oat milk stock by week"), strict=True
        ):
            chart_id = edited.chart_id if node is lab.nodes[0] else edited.chart_id + 1
            outcomes.append(node.update_chart(Chart(chart_id=chart_id, title=title)).outcome)
        for node in lab.nodes:
            began = time.perf_counter()
            answers = node.search(f"{QUESTIONS[1]}, asked of {node.node_id}", k=5).height
            slowest = max(slowest, time.perf_counter() - began)
            outcomes.append("answered" if answers == 5 else "silent")
        gone = lab.nodes[1].search(QUESTIONS[2], k=1)["chart_id"][0]
        outcomes.append(lab.nodes[1].delete_chart(gone).outcome)
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
        found = lab.nodes[-1].search("where is the tea kettle working", k=1)["chart_id"].to_list()
        self.claim(
            f"what was edited meanwhile is found on {lab.nodes[-1].node_id}; "
            f"{again} of {len(lab.charts):,} charts were embedded again",
            found == [edited.chart_id] and again <= 2 * len(lab.nodes),
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
