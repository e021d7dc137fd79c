"""All that happens on a node, by typed names: how each happening is counted, and what the journal says of it.

A new one is a class here, told by ``context.tell`` where it happens; every listener hears of it from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Line(NamedTuple):
    """What the journal writes of a happening.

    event: its name there; level: in the log; once: use ``level`` the first time for this ``event`` only, DEBUG after.
    """

    event: str
    detail: str = ""
    level: int = logging.DEBUG
    once: bool = False


class Happening(msgspec.Struct, frozen=True):
    """Something that happened on a node."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The counters that it adds to, and how much."""
        return {}

    @property
    def line(self) -> Line | None:
        """What the journal writes; None, the default, for nothing."""
        return None


# --- the node ---------------------------------------------------------------------------------------------------------


class Started(Happening, frozen=True):
    """The node runs. address: of its Redis, without a password."""

    address: str

    @property
    def line(self) -> Line:
        return Line("started", self.address)


class Stopped(Happening, frozen=True):
    """The node has ended, and left Redis."""

    @property
    def line(self) -> Line:
        return Line("stopped")


class LeftBehind(Happening, frozen=True):
    """A thread did not end in time. what: which thread, and how long it was waited for."""

    what: str

    @property
    def line(self) -> Line:
        return Line("left_behind", self.what, logging.WARNING)


class StepFailed(Happening, frozen=True):
    """A thread's step raised an unknown error. said: the step and the error; pause: seconds until it is tried again;
    again: whether the step before raised the same."""

    said: str
    pause: float
    again: bool

    @property
    def counts(self) -> Mapping[str, int]:
        return {"steps_failed": 1}

    @property
    def line(self) -> Line:
        level = logging.DEBUG if self.again else logging.ERROR
        return Line("step_failed", f"{self.said}; it is tried again after {self.pause:g} s", level)


class ThreadFailed(Happening, frozen=True):
    """A thread was ended by an error. said: which thread and which error."""

    said: str

    @property
    def line(self) -> Line:
        return Line("thread_failed", f"{self.said}; start() begins it again", logging.CRITICAL)


class SnapshotRestored(Happening, frozen=True):
    """The node holds what it held before. charts: how many; path: of the file."""

    charts: int
    path: str

    @property
    def line(self) -> Line:
        return Line("snapshot_restored", f"{self.charts:,} charts from {self.path}", logging.INFO)


class SnapshotLeftAside(Happening, frozen=True):
    """The file of vectors is not one that this node can begin with. reason: in words."""

    reason: str

    @property
    def line(self) -> Line:
        return Line("snapshot_left_aside", f"{self.reason}; it is written anew", logging.WARNING)


class SnapshotSaved(Happening, frozen=True):
    """What the node holds was written to its file. charts: how many."""

    charts: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"snapshots": 1}


class SnapshotFailed(Happening, frozen=True):
    """The file of vectors could not be written, and is as it was. said: the file and the error."""

    said: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"snapshots_failed": 1}

    @property
    def line(self) -> Line:
        return Line("snapshot_failed", f"{self.said}; it is tried again in a minute", logging.WARNING, once=True)


class Slept(Happening, frozen=True):
    """The process did not run for some seconds, longer than the other nodes wait for a sign of life."""

    seconds: float

    @property
    def counts(self) -> Mapping[str, int]:
        return {"sleeps": 1}

    @property
    def line(self) -> Line:
        return Line("slept", f"for {self.seconds:.1f} s")


class Ordered(Happening, frozen=True):
    """Who watches the cluster has asked this node to do something. source: who; action: what; outcome: "refused",
    "begun", "done" or "failed"; said: in words."""

    source: str
    action: str
    outcome: str
    said: str

    @property
    def line(self) -> Line:
        level = logging.WARNING if self.outcome in ("refused", "failed") else logging.INFO
        said = f", {self.said}" if self.said else ""
        return Line(f"ordered_{self.action}", f"by {self.source}: {self.outcome}{said}", level)


class ModelSwitched(Happening, frozen=True):
    """The node answers with the vectors of another model from now on. fingerprint: the new model's."""

    fingerprint: str

    @property
    def line(self) -> Line:
        return Line("model_switched", self.fingerprint, logging.INFO)


class ToggleSet(Happening, frozen=True):
    """A toggle was set on this node, or on another for it. value: in words; node: the one that it is for, "" for all;
    version: of the setting; by: who set it; source: the node on which that was."""

    name: str
    value: str
    node: str
    version: int
    by: str
    source: str

    @property
    def line(self) -> Line:
        where = f"for {self.node}" if self.node else "for all nodes"
        told = f"{self.name}={self.value} {where}, by {self.by} on {self.source}, version {self.version}"
        return Line("toggle_set", told, logging.INFO)


# --- the connection ---------------------------------------------------------------------------------------------------


class ConnectionLost(Happening, frozen=True):
    """Redis is away; or, where ``refused``, it is there but forbids what a node must do."""

    reason: str
    refused: bool

    @property
    def counts(self) -> Mapping[str, int]:
        return {"refusals" if self.refused else "outages": 1}

    @property
    def line(self) -> Line:
        return (
            Line("redis_refused", self.reason, logging.WARNING)
            if self.refused
            else Line("redis_away", self.reason.removeprefix("Redis ").replace(" is away: ", ": ", 1), logging.WARNING)
        )


class ConnectionBack(Happening, frozen=True):
    """Redis is back. seconds: how long it was away."""

    seconds: float

    @property
    def line(self) -> Line:
        return Line("redis_back", f"after {self.seconds:.2f} s", logging.INFO)


class MemoryLost(Happening, frozen=True):
    """The server is another one, or was restarted without its data."""

    @property
    def counts(self) -> Mapping[str, int]:
        return {"memory_losses": 1}

    @property
    def line(self) -> Line:
        return Line("memory_lost", "the server's generation is another", logging.WARNING)


class PageTurnedAway(Happening, frozen=True):
    """Redis did not take a page. bound: the most bytes of a page from now on; 0: the same page is tried once more."""

    refusal: str
    bound: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"pages_refused": 1}

    @property
    def line(self) -> Line:
        if not self.bound:
            return Line("page_refused", f"{self.refusal}; it has a second try")
        said = f"{self.refusal}; they have {self.bound:,} at most from now on"
        return Line("pages_refused", said, logging.WARNING, once=True)


# --- what is said and heard -------------------------------------------------------------------------------------------


class Said(Happening, frozen=True):
    """An event, a page or both were sent. size: bytes; event: its type, or that of the page."""

    size: int
    event: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"published": 1, "bytes_published": self.size}


class NotSaid(Happening, frozen=True):
    """An event could not be sent, since Redis is away. event: its type."""

    event: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"publish_failed": 1}


class Heard(Happening, frozen=True):
    """A message arrived, of whatever kind."""

    @property
    def counts(self) -> Mapping[str, int]:
        return {"received": 1}


class Dropped(Happening, frozen=True):
    """Something that arrived was not accepted. kind: see `copilotlab.protocol.events.EventRejected`."""

    kind: str
    reason: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {f"dropped_{self.kind}": 1}

    @property
    def line(self) -> Line:
        return Line(f"dropped_{self.kind}", self.reason, logging.WARNING, once=True)


class PageFetched(Happening, frozen=True):
    """A page that another node put into Redis was read. size: bytes."""

    size: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"bytes_fetched": self.size}


class Applied(Happening, frozen=True):
    """News of other nodes or of the repository was taken in. charts: how many of the store's changed by that."""

    charts: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"applied": self.charts}


class Unlistened(Happening, frozen=True):
    """News of node ``source`` was not taken in, since listening is off: it is fetched once that is on again."""

    source: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"unlistened": 1}


class GapSeen(Happening, frozen=True):
    """An event of node ``source`` was missed."""

    source: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"gaps": 1}


class ChunkMissed(Happening, frozen=True):
    """A chunk of a batch of node ``source`` was gone from Redis before it was fetched."""

    source: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"chunks_missed": 1}


class DigestsDiffered(Happening, frozen=True):
    """This node and ``peer`` held different charts for a whole heartbeat."""

    peer: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"digests_differed": 1}


class Reconciling(Happening, frozen=True):
    """A comparison with ``peer`` begins; what is newer there is fetched."""

    peer: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"reconciliations": 1}

    @property
    def line(self) -> Line:
        return Line("reconcile", f"with {self.peer}")


class TransferEnded(Happening, frozen=True):
    """What was asked of ``peer`` came, or was given up. records: how many the store took in; seconds: how long it took,
    on the node's clock."""

    peer: str
    records: int
    seconds: float = 0.0


# --- changes ----------------------------------------------------------------------------------------------------------


class Updated(Happening, frozen=True):
    """A change was made here. outcome: that of `UpdateResult`; seconds: how long it took, on the node's clock."""

    chart_id: int
    revision: int
    outcome: str
    seconds: float = 0.0

    @property
    def counts(self) -> Mapping[str, int]:
        return {"deferred": 1} if self.outcome == "deferred" else {}


class Deleted(Happening, frozen=True):
    """A chart was deleted here. outcome, seconds: as of `Updated`."""

    chart_id: int
    revision: int
    outcome: str
    seconds: float = 0.0


class Owed(Happening, frozen=True):
    """The other nodes were not told of a change: that is done when Redis is back, or publishing is on again."""

    chart_id: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"local": 1}


class ClaimLeft(Happening, frozen=True):
    """A claim could not be given back, since Redis is away."""

    chart_id: int

    @property
    def line(self) -> Line:
        return Line("claim_left", f"chart {self.chart_id}: it ends by itself")


class Embedded(Happening, frozen=True):
    """Texts were embedded. charts: how many; truncated: how many of them are longer than the model reads."""

    charts: int
    truncated: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"embeddings": self.charts, "truncated": self.truncated}


class EmbeddingWasted(Happening, frozen=True):
    """Vectors were made that the store had no use for: it had newer ones by then. charts: how many."""

    charts: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"embeddings_wasted": self.charts}


# --- batches ----------------------------------------------------------------------------------------------------------


class BatchBegan(Happening, frozen=True):
    """A batch of this node begins.

    kind: "rebuild" or "sync"; epoch: of its lease, 0 where leases have none; alone: whether Redis is away, so that it
    is for this node only; taken_over: whether the lease was left behind by a holder that is gone.
    """

    kind: str
    epoch: int
    alone: bool
    taken_over: bool

    @property
    def counts(self) -> Mapping[str, int]:
        return {"batches_taken_over": 1} if self.taken_over else {}

    @property
    def line(self) -> Line:
        if self.alone:
            return Line(f"{self.kind}_started", "for this node only: Redis is away")
        return Line(f"{self.kind}_started", f"epoch {self.epoch}" if self.epoch else "")


class BatchFailed(Happening, frozen=True):
    """An error of the model or the repository has ended a batch of this node."""

    kind: str
    error: str

    @property
    def line(self) -> Line:
        return Line(f"{self.kind}_failed", self.error, logging.ERROR)


class BatchEnded(Happening, frozen=True):
    """A batch of this node has ended; the fields are those of `BatchResult`."""

    kind: str
    outcome: str
    charts: int
    embedded: int
    removed: int
    seconds: float
    reused: int = 0

    @property
    def counts(self) -> Mapping[str, int]:
        return {"batches": 1, "fenced": int(self.outcome == "fenced")}

    @property
    def line(self) -> Line:
        said = f"{self.outcome}: {self.charts} charts, {self.embedded} embedded, {self.removed} removed"
        return Line(f"{self.kind}_ended", said, logging.INFO)


class BatchHeard(Happening, frozen=True):
    """A batch of another node begins or ends. said: which, in words."""

    source: str
    said: str

    @property
    def line(self) -> Line:
        return Line("batch_heard", f"{self.source} {self.said}")


# --- the repository ---------------------------------------------------------------------------------------------------


class RepositoryAway(Happening, frozen=True):
    """The repository did not answer a look."""

    reason: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"repository_away": 1}

    @property
    def line(self) -> Line:
        return Line("repository_away", self.reason, logging.WARNING, once=True)


class WentBack(Happening, frozen=True):
    """The repository is at a lower revision than was seen of it: it was restored. seen: the highest seen before."""

    revision: int
    seen: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"went_back": 1}

    @property
    def line(self) -> Line:
        said = f"the repository is at revision {self.revision}, this node was at {self.seen}: all is compared anew"
        return Line("went_back", said, logging.WARNING)


class AnotherCatalogue(Happening, frozen=True):
    """The repository holds another catalogue than before. now, before: how their incarnations begin."""

    now: str
    before: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"another_catalogue": 1}

    @property
    def line(self) -> Line:
        said = f"the repository holds catalogue {self.now}, and no more {self.before}: all is compared anew"
        return Line("another_catalogue", said, logging.WARNING)


class ComparedAnew(Happening, frozen=True):
    """This node did not hold what the repository held at ``revision``, and compares the whole catalogue."""

    revision: int

    @property
    def counts(self) -> Mapping[str, int]:
        return {"compared_anew": 1}

    @property
    def line(self) -> Line:
        said = f"at revision {self.revision} this node did not hold what the repository holds"
        return Line("compared_anew", said, logging.WARNING)


class EditsLeft(Happening, frozen=True):
    """What was edited by hand cannot be made a change, since the repository takes none."""

    reason: str

    @property
    def line(self) -> Line:
        said = f"what was edited by hand cannot be made a change: {self.reason}"
        return Line("edits_left", said, logging.WARNING, once=True)


class ChartSkipped(Happening, frozen=True):
    """A chart is left out. column: the one that cannot be read, or "text" where the model fails on its words."""

    chart_id: int
    revision: int
    column: str
    reason: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"skipped": 1}

    @property
    def line(self) -> Line:
        said = f"chart {self.chart_id}, revision {self.revision}: {self.column}: {self.reason}"
        return Line(f"skipped_{self.column}", said, logging.WARNING, once=True)


# --- answers ----------------------------------------------------------------------------------------------------------


class Searched(Happening, frozen=True):
    """Queries were answered. queries: how many; seconds: how long they took altogether."""

    queries: int
    seconds: float

    @property
    def counts(self) -> Mapping[str, int]:
        return {"searches": self.queries}


class SearchedIncomplete(Happening, frozen=True):
    """A search was answered from less than the repository holds; told once. held: how much there is, in words."""

    held: str

    @property
    def line(self) -> Line:
        return Line("incomplete", f"answers may lack charts, from {self.held} (said once)", logging.WARNING)


class DetailsMissing(Happening, frozen=True):
    """Charts were found, and could not be described in time. charts: how many; reason: of the delay, in words."""

    charts: int
    reason: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"details_missing": self.charts}

    @property
    def line(self) -> Line:
        return Line("details_missing", f"the repository does not answer: {self.reason}", logging.WARNING, once=True)


# --- alerts -----------------------------------------------------------------------------------------------------------


class AlertRaised(Happening, frozen=True):
    """Something has been wrong for longer than it should; see `copilotlab.monitoring.alerts`. evidence: in words."""

    name: str
    severity: str
    evidence: str
    remedy: str

    @property
    def counts(self) -> Mapping[str, int]:
        return {"alerts": 1}

    @property
    def line(self) -> Line:
        level = logging.ERROR if self.severity == "critical" else logging.WARNING
        return Line(f"alert_{self.name}", self.evidence, level)


class AlertEnded(Happening, frozen=True):
    """What an alert was about is over. seconds: how long it lasted."""

    name: str
    seconds: float

    @property
    def line(self) -> Line:
        return Line(f"alert_{self.name}_ended", f"after {self.seconds:.1f} s", logging.INFO)
