"""The store beside a plain dictionary, through whatever Hypothesis thinks of."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from copilotlab.store import Record, VectorStore

DIM = 4
# Few and alike, so that scores tie: equal vectors under several charts, and different vectors with equal scores.
VECTORS = [
    np.array(v, dtype=np.float32) / np.linalg.norm(np.array(v, dtype=np.float32))
    for v in ([1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [-1, 0, 0, 0], [3, 1, 0, 2], [1, 1, 0, -1])
]
CHART_IDS = st.integers(0, 11)
REVISIONS = st.integers(0, 9)
RECORDS = st.builds(
    Record.of,
    CHART_IDS,
    REVISIONS,
    st.sampled_from([b"a" * 16, b"b" * 16]),
    st.sampled_from(VECTORS),
)


class Model:
    """What the store must do, written as the rules are said."""

    def __init__(self, ordered: bool) -> None:
        self.ordered = ordered
        self.held: dict[int, Record] = {}
        self.tombstones: dict[int, int] = {}
        self.list_revision = -1
        self.listed: set[int] = set()

    def put(self, record: Record) -> bool:
        chart_id, held = record.chart_id, self.held.get(record.chart_id)
        if self.ordered:
            if held is not None and self.rank(record) <= self.rank(held):
                return False
            if held is None and record.revision <= self.tombstones.get(chart_id, -1):
                return False
            if held is None and record.revision <= self.list_revision and chart_id not in self.listed:
                return False
        self.held[chart_id] = record
        return True

    def remove(self, chart_id: int, revision: int) -> bool:
        held = self.held.get(chart_id)
        if self.ordered:
            if held is not None and held.revision > revision:
                return False
            self.tombstones[chart_id] = max(revision, self.tombstones.get(chart_id, -1))
        return self.held.pop(chart_id, None) is not None

    def retain(self, chart_ids: set[int], revision: int) -> list[int]:
        gone = [
            i
            for i, record in self.held.items()
            if i not in chart_ids and not (self.ordered and record.revision > revision)
        ]
        for chart_id in gone:
            del self.held[chart_id]
        if self.ordered and revision >= self.list_revision:
            self.list_revision, self.listed = revision, chart_ids
        return sorted(gone)

    def search(self, query: np.ndarray, k: int, chart_ids: list[int] | None) -> list[tuple[int, float]]:
        among = self.held if chart_ids is None else {i: r for i, r in self.held.items() if i in chart_ids}
        scored = [(i, float(np.float32(r.vector.astype(float) @ query.astype(float)))) for i, r in among.items()]
        return sorted(scored, key=lambda match: (-match[1], match[0]))[:k]

    @property
    def digest(self) -> str:
        total = 0
        for i, r in self.held.items():
            entry = i.to_bytes(8, "little") + r.revision.to_bytes(8, "little") + r.content_hash + r.vector_hash
            total += int.from_bytes(blake2b(entry, digest_size=16).digest(), "little")
        return f"{total % 2**128:032x}"

    @staticmethod
    def rank(record: Record) -> tuple[int, bytes, bytes]:
        return record.revision, record.vector_hash, record.content_hash


class StoreMachine(RuleBasedStateMachine):
    """With an exact limit so low that the store goes from exact to graph and back, and merges and drops graphs."""

    ordered: bool

    @initialize(exact_limit=st.sampled_from([0, 3, 1000]))
    def begin(self, exact_limit: int) -> None:
        self.store = VectorStore(DIM, ordered=self.ordered, exact_limit=exact_limit, background=False)
        self.model = Model(self.ordered)

    @rule(record=RECORDS)
    def put(self, record: Record) -> None:
        assert self.store.put(record) == self.model.put(record)

    @rule(records=st.lists(RECORDS, max_size=12))
    def put_many(self, records: list[Record]) -> None:
        assert self.store.put_many(records) == sum(self.model.put(record) for record in records)

    @rule(chart_id=CHART_IDS, revision=REVISIONS)
    def remove(self, chart_id: int, revision: int) -> None:
        assert self.store.remove(chart_id, revision) == self.model.remove(chart_id, revision)

    @rule(chart_ids=st.sets(CHART_IDS), revision=REVISIONS)
    def retain(self, chart_ids: set[int], revision: int) -> None:
        assert self.store.retain(chart_ids, revision) == self.model.retain(chart_ids, revision)

    @rule(steps=st.integers(1, 3))
    def index(self, steps: int) -> None:
        for _ in range(steps):
            self.store.index_step()

    @rule(
        query=st.sampled_from(VECTORS),
        k=st.integers(1, 14),
        chart_ids=st.none() | st.lists(st.integers(-2, 14), max_size=14),
    )
    def search(self, query: np.ndarray, k: int, chart_ids: list[int] | None) -> None:
        expected = self.model.search(query, k, chart_ids)
        (many,) = self.store.search_many(query[None], k, chart_ids)
        for found in (self.store.search(query, k, chart_ids), many):
            assert list(zip(found.chart_ids.tolist(), found.scores.tolist(), strict=True)) == expected

    @invariant()
    def they_hold_the_same(self) -> None:
        held = self.model.held
        assert len(self.store) == len(held)
        assert self.store.digest == self.model.digest
        manifest = self.store.manifest()
        assert manifest.chart_ids.tolist() == sorted(held)
        assert manifest.revisions.tolist() == [held[i].revision for i in sorted(held)]
        for chart_id in range(12):
            assert (chart_id in self.store) == (chart_id in held)
            assert self.store.tombstone(chart_id) == self.model.tombstones.get(chart_id)
            got, wanted = self.store.get(chart_id), held.get(chart_id)
            assert self.store.revision(chart_id) == (wanted and wanted.revision)
            if got is None or wanted is None:
                assert got is wanted
            else:
                assert StoreMachine.bits(got) == StoreMachine.bits(wanted)

    @staticmethod
    def bits(record: Record) -> tuple[object, ...]:
        return record.chart_id, record.revision, record.content_hash, record.vector.tobytes(), record.vector_hash


class OrderedStoreMachine(StoreMachine):
    ordered = True


class UnorderedStoreMachine(StoreMachine):
    ordered = False


@pytest.mark.parametrize("machine", [OrderedStoreMachine, UnorderedStoreMachine])
def test_a_store_does_what_a_dictionary_would(machine: type[StoreMachine]):
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
