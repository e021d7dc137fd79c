"""OpenTelemetry traces of a node: a span for each update, search, batch and transfer, with ids and numbers, no text.

    node.listen_to(Traces())

Nothing is recorded until the application has set OpenTelemetry up. A happening is told when it is over, so a span is
given its beginning afterwards. Needs opentelemetry-api.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from copilotlab.monitoring.happenings import (
    BatchEnded,
    BatchFailed,
    Deleted,
    Happening,
    Searched,
    TransferEnded,
    Updated,
)

About = dict[str, str | int]


class Traces:
    """A listener that makes spans. node: the name that they carry, as ``copilotlab.node``; "" leaves it out."""

    def __init__(self, node: str = "", provider: trace.TracerProvider | None = None) -> None:
        from copilotlab import __version__

        self._tracer = trace.get_tracer("copilotlab", __version__, provider)
        self._node = {"copilotlab.node": node} if node else {}
        self._failed = ""  # what ends the batch that ends next, told just before

    def __call__(self, happening: Happening) -> None:
        """Make the span of what has just ended."""
        match happening:
            case Searched():
                self._span("search", happening.seconds, {"queries": happening.queries})
            case Updated() | Deleted():
                name = "update" if isinstance(happening, Updated) else "delete"
                change: About = {
                    "chart_id": happening.chart_id,
                    "revision": happening.revision,
                    "outcome": happening.outcome,
                }
                self._span(name, happening.seconds, change)
            case TransferEnded():
                self._span("transfer", happening.seconds, {"peer": happening.peer, "records": happening.records})
            case BatchFailed():
                self._failed = happening.error
            case BatchEnded():
                failed, self._failed = self._failed, ""
                about: About = {
                    "kind": happening.kind,
                    "outcome": happening.outcome,
                    "charts": happening.charts,
                    "embedded": happening.embedded,
                    "reused": happening.reused,
                }
                self._span("batch", happening.seconds, about, failed)

    def _span(self, name: str, seconds: float, about: About, failed: str = "") -> None:
        now = time.time_ns()
        attributes = {**self._node, **{f"copilotlab.{key}": value for key, value in about.items()}}
        span = self._tracer.start_span(
            f"copilotlab.{name}",
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            start_time=now - round(seconds * 1e9),
        )
        if failed:
            span.set_status(StatusCode.ERROR, "the batch has failed; the node's journal says why")
        span.end(now)

    def __repr__(self) -> str:
        return f"Traces({self._node.get('copilotlab.node', '')!r})"
