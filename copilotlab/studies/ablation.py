"""What each choice of the policy is good for: a scenario in which a promise breaks without it, and holds with it.

Every scenario runs on a simulated server with a controlled clock (`SimulatedLab`). Nothing in it is random: it gives
the same result each time, and needs no seed. Where other remedies would hide what one does, they are off: column
``base``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import polars as pl

from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart, simulated_charts
from copilotlab.markup import DOUBTFUL, GOOD, card
from copilotlab.protocol.keys import BATCH_IN_PROGRESS
from copilotlab.protocol.policy import Policy
from copilotlab.reasons import short
from copilotlab.studies.result_cache import cached

CHARTS = 40
LIMIT = 900.0  # seconds after the fault: what is not right by then counts as lost (a sync would come hourly)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a scenario.

    holds: whether the promise held. lost: charts that nodes hold otherwise than the repository at the end, all nodes
    together. seconds: from the end of the fault until all agreed; None if they never did. embeddings: made after the
    fault; wasted: those of them that were not needed. batches: rebuilds that were begun. side_by_side: the largest
    number of nodes that were in a batch at the same moment. story: what happened after the first fill, with the columns
    of `SimulatedLab.timeline`; the node "lab" breaks things, and in the end says what came of it.
    """

    holds: bool
    lost: int
    seconds: float | None
    embeddings: int
    wasted: int
    batches: int
    side_by_side: int
    story: pl.DataFrame

    def _repr_html_(self) -> str:
        facts = {
            "All agree": "never" if self.seconds is None else f"after {self.seconds:.1f} s",
            "Charts held wrongly": self.lost,
            "Embeddings": f"{self.embeddings:,}, of which {self.wasted:,} in vain",
            "Rebuilds begun": self.batches,
            "Nodes in a batch at once": self.side_by_side,
            "Story": f"{self.story.height:,} events",
        }
        heading = f"The promise is {'kept' if self.holds else 'broken'}"
        return card(heading, facts, colour=GOOD if self.holds else DOUBTFUL)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What shows one field of the policy. promise: of section 5 of the design, broken without the field; what: what
    happens; base: the policy in which the field is switched; play: plays it in a lab; seconds_per_text: of that lab.
    """

    field: str
    promise: str
    what: str
    base: Policy
    play: Callable[[SimulatedLab], Outcome]
    seconds_per_text: float = 0.0


def ablation(fields: Sequence[str] = (), *, progress: bool = True) -> pl.DataFrame:
    """Play the scenario of each field of `Policy` with the field off and on: two rows a field, off first.

    fields: names of `Policy.remedies`; all by default. progress: show a bar. Results are kept on disk until the code
    that decides them changes. Raises ValueError for an unknown name.
    Columns: field, promise, scenario, base (the policy in which it is switched), on, holds, lost (charts), seconds
    (null: not within a quarter of an hour), embeddings, wasted, batches, side_by_side.
    """
    return summary(outcomes(fields, progress=progress))


def outcomes(fields: Sequence[str] = (), *, progress: bool = True) -> dict[tuple[str, bool], Outcome]:
    """Play as `ablation` does, and return each outcome by (field, on); `summary` makes a frame of them."""
    from tqdm.auto import tqdm

    plays = [(scenario.field, on) for scenario in _chosen(fields) for on in (False, True)]
    bar = tqdm(plays, desc="ablation", unit="play", disable=None if progress else True)
    return {(field, on): _outcome(_played(field, on=on)) for field, on in bar}


def summary(outcomes: Mapping[tuple[str, bool], Outcome]) -> pl.DataFrame:
    """Make the frame of `ablation` from what `outcomes` returned."""
    rows = []
    for (field, on), outcome in outcomes.items():
        (scenario,) = _chosen([field])
        rows.append(
            {
                "field": scenario.field,
                "promise": scenario.promise,
                "scenario": scenario.what,
                "base": _described(scenario.base),
                "on": on,
                "holds": outcome.holds,
                "lost": outcome.lost,
                "seconds": outcome.seconds,
                "embeddings": outcome.embeddings,
                "wasted": outcome.wasted,
                "batches": outcome.batches,
                "side_by_side": outcome.side_by_side,
            }
        )
    return pl.DataFrame(rows, schema_overrides={"seconds": pl.Float64})


def play(field: str, *, on: bool) -> Outcome:
    """Play the scenario of one field, with the field ``on`` or off. Raises ValueError for an unknown name."""
    (scenario,) = _chosen([field])
    policy = replace(scenario.base, **{field: on})  # type: ignore[arg-type]
    return scenario.play(SimulatedLab(3, policy, seconds_per_text=scenario.seconds_per_text, tick=0.5))


@cached(version=1)
def _played(field: str, *, on: bool) -> pl.DataFrame:
    """`play`, as a frame of one row, with the story as a list in a cell."""
    outcome = play(field, on=on)
    figures = {part.name: [getattr(outcome, part.name)] for part in fields(Outcome) if part.name != "story"}
    frame = pl.DataFrame(figures, schema_overrides={"seconds": pl.Float64})
    return frame.with_columns(outcome.story.to_struct("story").implode())


def _outcome(played: pl.DataFrame) -> Outcome:
    figures = played.drop("story").row(0, named=True)
    return Outcome(**figures, story=played["story"].explode().struct.unnest())


def _described(base: Policy) -> str:
    on = [name for name in Policy.remedies() if getattr(base, name)]
    off = [name for name in Policy.remedies() if name not in on]
    if len(on) > len(off):
        return f"Policy({', '.join(f'{name}=False' for name in off)})"
    return f"the written design{', ' if on else ''}{', '.join(on)}"


def _chosen(fields: Sequence[str]) -> list[Scenario]:
    known = {scenario.field: scenario for scenario in SCENARIOS}
    names = list(fields) or list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"fields has {short(name)}: expected names of {', '.join(known)}")
    return [known[name] for name in names]


# --- the scenarios ------------------------------------------------------------------------------------------------


class _Tally:
    """Counts what is made and begun from now on, in a lab that holds `CHARTS` charts, and tells the outcome."""

    def __init__(self, lab: SimulatedLab, *, filled: bool = True) -> None:
        self._lab = lab
        self._verdicts: list[tuple[float, str, str, str]] = []
        lab.charts.save_many(simulated_charts(CHARTS))
        if filled:
            lab.nodes[0].rebuild()
            lab.run(10)
        self._embeddings, self._before, self._began = lab.embeddings(), lab.timeline().height, lab.seconds

    def _story(self) -> pl.DataFrame:
        story = self._lab.timeline().slice(self._before)
        verdicts = pl.DataFrame(self._verdicts, schema=story.schema, orient="row")
        told = pl.concat([story, verdicts]).sort("seconds", maintain_order=True)
        return told.with_columns(pl.col("seconds") - self._began)

    def _judge(self, verdict: str, detail: str) -> None:
        self._verdicts.append((self._lab.seconds, "lab", verdict, detail))

    def outcome(self, *, needed: int, holds: Callable[[Outcome], bool] | None = None) -> Outcome:
        """Let the nodes live until they agree, for `LIMIT` at most, and tell what came of it.

        needed: embeddings that were not wasted. holds: whether the promise held, judged by the outcome; by default it
        did if the nodes agreed.
        """
        lab = self._lab
        seconds = lab.run_until_agreed(LIMIT)
        if seconds is not None:
            self._judge("agreed", "every node holds what the repository holds")
        lab.run(5)
        made, lost = lab.embeddings() - self._embeddings, lab.lost()
        begun = self._story().filter(event="rebuild_started").height
        wasted = max(0, made - needed)
        outcome = Outcome(seconds is not None, lost, seconds, made, wasted, begun, lab.side_by_side, self._story())
        kept = outcome.holds if holds is None else holds(outcome)
        figures = f"charts held wrongly: {lost}, embeddings: {made}, rebuilds: {begun}"
        self._judge("promise_kept" if kept else "promise_broken", figures)
        return replace(outcome, holds=kept, story=self._story())


def _stop(lab: SimulatedLab) -> None:
    lab.note("server_stopped")
    lab.redis.stop()


def _start_empty(lab: SimulatedLab) -> None:
    lab.note("server_started", "with nothing in it")
    lab.redis.start(keep_data=False)


def _a_long_batch(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab, filled=False)
    return tally.outcome(needed=CHARTS, holds=lambda outcome: outcome.batches == 1 and not outcome.wasted)


def _a_holder_wakes_up(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab, filled=False)
    lab.run(5)
    holder = next(index for index, node in enumerate(lab.nodes) if node.status()["batch"])
    lab.freeze(holder)
    lab.run(lab.policy.batch_timeout + 5)
    lab.resume(holder)
    stood, side_by_side = lab.redis.held().get(BATCH_IN_PROGRESS), False
    for _ in range(20):
        lab.run(0.5)
        side_by_side |= sum(bool(node.status()["batch"]) for node in lab.nodes) > 1
        side_by_side |= BATCH_IN_PROGRESS not in lab.redis.held() and any(node.status()["batch"] for node in lab.nodes)
    return tally.outcome(needed=CHARTS, holds=lambda _: stood is not None and not side_by_side)


def _a_late_message(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    lab.note("edit", "n0 changes chart 7; the message is held up")
    lab.nodes[0].update_chart(simulated_chart(7, "New words, and the last"))
    late = [carrier.arrived.pop() for carrier in lab.carriers]
    lab.note("deletion", "n1 deletes chart 7")
    lab.nodes[1].delete_chart(7)
    lab.run(5)
    lab.note("late_message", "the change of chart 7 reaches everybody")
    for carrier, message in zip(lab.carriers, late, strict=True):
        carrier.arrived.append(message)
    lab.run(5)
    return tally.outcome(needed=1)


def _an_edit_beside_a_batch(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    lab.nodes[0].replica.batches.begin("rebuild")
    lab.nodes[0].work()
    lab.note("edit", "n1 changes chart 3, which n0's batch has read already")
    lab.nodes[1].update_chart(simulated_chart(3, "Said while the batch had read the chart already"))
    return tally.outcome(needed=CHARTS + 1)


def _edits_in_an_outage(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    _stop(lab)
    lab.note("edit", "n0 changes chart 2")
    lab.nodes[0].update_chart(simulated_chart(2, "Changed while Redis was away"))
    lab.run(5)
    _start_empty(lab)
    return tally.outcome(needed=CHARTS + 1)


def _a_blink(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    lab.note("blink", "n2's connection is cut, and back at once")
    lab.carriers[2].blink()
    lab.run(30)
    return tally.outcome(needed=0, holds=lambda outcome: outcome.batches == 0)


def _memory_lost(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    _stop(lab)
    lab.note("edit", "n0 changes chart 2")
    lab.nodes[0].update_chart(simulated_chart(2, "The one chart that changed"))
    lab.run(5)
    _start_empty(lab)
    lab.run(30)
    return tally.outcome(needed=1, holds=lambda outcome: not outcome.lost and not outcome.wasted)


def _a_lost_message(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    lab.note("edit", "n0 changes chart 7")
    lab.nodes[0].update_chart(simulated_chart(7, "New words that node 2 never hears"))
    lab.carriers[2].arrived.clear()
    lab.note("message_lost", "what was on its way to n2 is gone")
    return tally.outcome(needed=1)


def _told_at_once(lab: SimulatedLab) -> Outcome:
    tally = _Tally(lab)
    lab.charts.save(simulated_chart(7, "Saved elsewhere, and all nodes are told"))
    for node in lab.nodes:
        lab.note("told", f"{node.node_id} of chart 7: {node.chart_changed(7).outcome}")
    return tally.outcome(needed=1, holds=lambda outcome: not outcome.lost and not outcome.wasted)


_SHORT = Policy(batch_timeout=60, chunk_size=4)

SCENARIOS = (
    Scenario(
        "renew_lease",
        "one batch at a time",
        "a rebuild takes three times as long as the lease",
        replace(_SHORT, fenced=False),
        _a_long_batch,
        seconds_per_text=4.5,
    ),
    Scenario(
        "fenced",
        "one batch at a time",
        "the holder is frozen for longer than its lease lasts, and wakes up beside the next one",
        _SHORT,
        _a_holder_wakes_up,
        seconds_per_text=3.0,  # the next holder, which began after three heartbeats, is still at work
    ),
    Scenario(
        "ordered",
        "nothing comes back",
        "an update arrives after the deletion that followed it",
        Policy(),
        _a_late_message,
    ),
    Scenario(
        "pick_up_deferred",
        "convergence",
        "a chart is edited while a batch runs that has read it already",
        Policy.seed(ordered=True, chunk_size=4),
        _an_edit_beside_a_batch,
    ),
    Scenario(
        "rebuild_at_reconnect",
        "convergence",
        "a chart is edited while Redis is away, and then nobody edits any more",
        Policy.seed(ordered=True),
        _edits_in_an_outage,
    ),
    Scenario(
        "tell_blips",
        "only a lost memory costs a rebuild",
        "one node's connection blinks",
        Policy(),
        _a_blink,
    ),
    Scenario(
        "reuse_vectors",
        "one embedding",
        "Redis comes back empty, and one chart has changed",
        Policy(),
        _memory_lost,
    ),
    Scenario(
        "reconcile",
        "convergence",
        "a message to one node is lost",
        Policy(),
        _a_lost_message,
    ),
    Scenario(
        "claim",
        "one embedding",
        "three nodes are told of one change at the same moment",
        Policy(),
        _told_at_once,
    ),
)
