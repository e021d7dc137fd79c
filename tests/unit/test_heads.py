"""What a repository and a store hold, without words and vectors: the two agree on what is the same."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab import Chart, ChartRepository, VectorStore
from copilotlab.store import Record


def chart(chart_id, title="Revenue"):
    return Chart(chart_id=chart_id, title=title)


def test_heads_are_the_changes_without_the_words():
    charts = ChartRepository()
    charts.save_many([chart(1), chart(2), chart(3)])
    charts.delete(2)
    charts.save(chart(1, "Other words"))

    for since in (0, 3, 5):
        heads = charts.heads_since(since)
        changes = charts.changes_since(since)
        assert heads.chart_ids.tolist() == [change.chart_id for change in changes]
        assert heads.revisions.tolist() == [change.revision for change in changes]
        assert heads.deleted.tolist() == [change.chart is None for change in changes]
        hashes = [bytes(16) if change.chart is None else change.chart.content_hash for change in changes]
        assert [row.tobytes() for row in heads.content_hashes] == hashes
    with pytest.raises(ValueError, match="revision='0'"):
        charts.heads_since("0")


def test_a_store_tells_the_heads_of_many_charts_at_once():
    store = VectorStore(4, background=False)
    wanted = np.array([5, 1, 9, 2])
    assert store.heads(wanted)[0].tolist() == [-1, -1, -1, -1]
    for chart_id in (1, 2, 5):
        store.put(Record.of(chart_id, chart_id + 10, bytes([chart_id]) * 16, [0, 0.6, 0.8, 0]))
    store.put(Record.of(5, 20, b"n" * 16, [0, 0.6, 0.8, 0]))
    store.remove(2, 30)

    revisions, hashes = store.heads(wanted)

    assert revisions.tolist() == [20, 11, -1, -1]
    assert [row.tobytes() for row in hashes[:2]] == [b"n" * 16, b"\x01" * 16]
    assert store.heads(np.empty(0, dtype=np.int64))[0].tolist() == []
