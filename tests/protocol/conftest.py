"""A cluster that a test drives by hand: one thread, one clock, no waiting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from copilotlab import Policy
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart


class Cluster(SimulatedLab):
    """Nothing happens unless a method here, or the test, makes it happen."""

    def settle(self, seconds: float = 10.0) -> None:
        """Let every node listen and work, with time going on, for ``seconds``."""
        self.run(seconds)


@pytest.fixture
def cluster() -> Callable[..., Cluster]:
    return lambda size=3, policy=None: Cluster(size, policy or Policy(), tick=0.5)


@pytest.fixture
def make_chart() -> Callable:
    return simulated_chart
