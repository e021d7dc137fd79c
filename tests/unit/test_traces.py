"""Traces: a span for each update, search, batch and transfer, with ids and numbers, and no text of anybody."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart, simulated_charts
from copilotlab.monitoring.traces import Traces


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


def traced(lab, exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    node = lab.nodes[0]
    node.listen_to(Traces(node.node_id, provider))
    return node


def named(exporter, name):
    return [dict(span.attributes) for span in exporter.get_finished_spans() if span.name == f"copilotlab.{name}"]


def test_updates_searches_batches_and_transfers_are_spans_with_ids_and_numbers(exporter):
    lab = SimulatedLab(1, seconds_per_text=0.1)
    node = traced(lab, exporter)
    lab.fill(5)
    node.update_chart(simulated_chart(2, "SECRET TITLE"))
    node.delete_chart(3)
    node.search("SECRET QUESTION")
    newcomer = lab.add_node()
    assert len(newcomer.store) == 0

    (batch,) = named(exporter, "batch")
    assert batch["copilotlab.outcome"] == "published"
    assert batch["copilotlab.embedded"] == 5
    (update,) = named(exporter, "update")
    assert update == {
        "copilotlab.node": "n0",
        "copilotlab.chart_id": 2,
        "copilotlab.revision": 6,
        "copilotlab.outcome": "published",
    }
    assert [span["copilotlab.chart_id"] for span in named(exporter, "delete")] == [3]
    assert [span["copilotlab.queries"] for span in named(exporter, "search")] == [1]
    for span in exporter.get_finished_spans():
        assert "SECRET" not in span.to_json()
        assert span.end_time >= span.start_time


def test_a_newcomer_shows_what_it_fetched(exporter):
    lab = SimulatedLab(1)
    lab.fill(5)
    lab.add_node()
    lab.nodes.reverse()
    traced(lab, exporter)
    lab.run(5.0)
    transfers = named(exporter, "transfer")
    assert [span["copilotlab.records"] for span in transfers if span["copilotlab.records"]] == [5]
    assert {span["copilotlab.peer"] for span in transfers} == {"n0"}


def test_a_batch_that_fails_is_an_error_without_the_words_of_the_chart(exporter):
    model = FragileModel(SimulatedLab(1).embedder)
    lab = SimulatedLab(1, embedder=model)
    node = traced(lab, exporter)
    lab.charts.save_many(simulated_charts(5))
    model.gate.fail()
    with pytest.raises(OSError, match="the model has failed"):
        node.rebuild()
    (span,) = (span for span in exporter.get_finished_spans() if span.name == "copilotlab.batch")
    assert span.attributes["copilotlab.outcome"] == "cancelled"
    assert not span.status.is_ok


def test_nothing_is_recorded_where_the_application_has_not_set_it_up():
    lab = SimulatedLab(1)
    lab.nodes[0].listen_to(Traces())
    lab.fill(2)
    assert lab.nodes[0].status()["trouble"] == ""


def test_a_node_imports_neither_traces_nor_metrics_by_itself():
    code = (
        "import sys; from copilotlab import Node, ChartRepository, load_embedder;"
        "Node(ChartRepository(), load_embedder('hash')).status();"
        "print(sorted({'copilotlab.monitoring.traces', 'prometheus_client', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
