"""How a node has been doing lately: its lag, the age of the last event and its search time, as lines over time."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from copilotlab.markup import text
from copilotlab.monitoring.happenings import Happening, Heard, Searched
from copilotlab.node import Node

SAMPLES = 60
EVERY = 1.0  # seconds between two samples, so that a row changes once a second and not at each refresh
WIDTH, HEIGHT = 54, 14


class Sample(NamedTuple):
    """One look at a node. lag: charts behind. age: seconds since it heard an event. search_ms: of its last search."""

    lag: int
    age: float | None
    search_ms: float | None


class _Ear:
    """Listens to one node: when it last heard an event, and how long its last search took."""

    def __init__(self) -> None:
        self.heard_at: float | None = None
        self.search_seconds: float | None = None

    def __call__(self, happening: Happening) -> None:
        if isinstance(happening, Heard):
            self.heard_at = time.monotonic()
        elif isinstance(happening, Searched) and happening.queries:
            self.search_seconds = happening.seconds / happening.queries


_ears: weakref.WeakKeyDictionary[Node, _Ear] = weakref.WeakKeyDictionary()  # a listener stays: one for all panels


def _ear(node: Node) -> _Ear:
    if node not in _ears:
        _ears[node] = _Ear()
        node.listen_to(_ears[node])
    return _ears[node]


class Pulse:
    """The last minute of one node, a sample a second."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.monotonic) -> None:
        self._ear = _ear(node)
        self._clock = clock
        self._began = self._sampled = clock()
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)

    def take(self, lag: int) -> None:
        """Note how the node is doing, at most once a second."""
        now = self._clock()
        if self.samples and now - self._sampled < EVERY:
            return
        self._sampled = now
        heard, took = self._ear.heard_at, self._ear.search_seconds
        age = now - max(heard or self._began, self._began)
        self.samples.append(Sample(lag, age, None if took is None else 1000 * took))

    def html(self) -> str:
        """Draw a line and the latest figure for each of the three measures."""
        now = self.samples[-1] if self.samples else Sample(0, None, None)
        age = "—" if now.age is None else f"{now.age:.0f} s ago"
        took = "—" if now.search_ms is None else f"{now.search_ms:.1f} ms"
        return "".join(
            f"<span class='cl-pulse cl-pulse-{field}'><span class='cl-pulse-name'>{name}</span>"
            f"{line_html([getattr(sample, field) for sample in self.samples], f'{spoken} over the last minute')}"
            f"<span class='cl-pulse-now'>{text(words)}</span></span>"
            for name, spoken, field, words in (
                ("lag", "lag in charts", "lag", f"{now.lag:,}"),
                ("heard", "age of the last event in seconds", "age", age),
                ("search", "search time in milliseconds", "search_ms", took),
            )
        )


def line_html(values: Sequence[float | None], name: str) -> str:
    """Draw a line over time, the newest value at the right end; its scale is from 0 to the largest value, or 1.

    values: None where there is none. name: what a screen reader says; it adds the largest and the last value.
    """
    known = [value for value in values if value is not None]
    largest = max(1.0, *known) if known else 1.0
    step = WIDTH / (SAMPLES - 1)
    left = WIDTH - step * (len(values) - 1)
    points = " ".join(
        f"{left + step * at:.1f},{HEIGHT - 1 - (HEIGHT - 2) * value / largest:.1f}"
        for at, value in enumerate(values)
        if value is not None
    )
    said = f"{name}: at most {max(known):.3g}, now {known[-1]:.3g}" if known else f"{name}: nothing yet"
    return (
        f"<svg class='cl-line' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img' "
        f"aria-label='{said}'><polyline points='{points}' fill='none' stroke='currentColor' stroke-width='1.5'/></svg>"
    )
