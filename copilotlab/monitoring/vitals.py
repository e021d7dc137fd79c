"""How a node is at one moment, in plain numbers: what metrics, alerts and health are made of."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class BatchVitals(msgspec.Struct, frozen=True, kw_only=True):
    """The batch that a node drives.

    done, total: charts; embedded: of those done, how many were made here; seconds: since it began; expected: seconds
    that it takes in all by this node's own estimate, None before there is one; leased: whether under the lease.
    """

    kind: str
    done: int
    total: int
    embedded: int
    seconds: float
    expected: float | None
    leased: bool


class PeerVitals(msgspec.Struct, frozen=True, kw_only=True):
    """Another node, as this one has heard it.

    silent_for: seconds since it was heard, or since the last return of Redis. differs: the digests, theirs and ours,
    where both stay as they are and differ although both hold all up to the same revision; None otherwise.
    """

    node: str
    silent_for: float
    charts: int
    differs: tuple[str, str] | None


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """One node with one of its models.

    at: when, on the node's clock; all other times are seconds before that. state: of `Node.status`; filled: whether the
    node has held all of the catalogue once. redis: "connected", "away" or "refused". read_to: the repository's revision
    at the last look; complete_to: up to which all is here; behind_charts, behind_seconds: what is missing, and since
    when the first of it was known. last_look, last_full_sync, last_event: seconds since then, None if never.
    repository_trouble: seconds since the repository last answered, 0.0 while it does. embedder_trouble: the error with
    which the last batch failed, "" if it did not. counts: `Node.metrics`' counters; recent: how many seconds ago each
    kind of dropped event was seen last.
    """

    at: float
    node: str
    namespace: str
    model: str
    state: str
    filled: bool
    heartbeat_interval: float
    redis: str
    redis_address: str
    redis_reason: str
    away_for: float
    charts: int
    store_bytes: int
    digest: str
    index: str
    recall: float | None
    skipped: int
    skipped_example: str
    read_to: int
    complete_to: int
    behind_charts: int
    behind_seconds: float
    last_look: float | None
    last_full_sync: float | None
    last_event: float | None
    repository_trouble: float
    embedder_trouble: str
    batch: BatchVitals | None
    peers: tuple[PeerVitals, ...]
    counts: Mapping[str, int]
    recent: Mapping[str, float]
