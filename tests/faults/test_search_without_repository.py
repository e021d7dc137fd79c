"""Search answers from memory, also when the repository, where titles are read, does not."""

from __future__ import annotations

import threading

from trial import wait_until

from copilotlab import Chart, Lab, load_embedder
from copilotlab.lab.fragile_repository import FragileRepository


def lab_with_hanging_repository() -> Lab:
    charts = FragileRepository()
    charts.save_many([Chart(chart_id=chart_id, title=f"Revenue of product {chart_id}") for chart_id in range(1, 21)])
    lab = Lab(2, load_embedder("hash"), charts).start()
    lab.wait_converged()
    return lab


def answers(lab: Lab, query: str, limit: float = 10.0):
    """What the node finds; None if it has not answered within the limit."""
    found = []
    thread = threading.Thread(target=lambda: found.append(lab.nodes[1].search(query, k=3)), daemon=True)
    thread.start()
    thread.join(limit)
    return found[0] if found else None


def test_a_repository_that_hangs_costs_titles_and_no_answer():
    lab = lab_with_hanging_repository()
    charts = lab.charts
    try:
        charts.gate.hang()
        frames = [answers(lab, f"revenue of product {number}") for number in (1, 2, 3)]
        charts.gate.mend()

        assert [None if frame is None else frame["chart_id"][0] for frame in frames] == [1, 2, 3]
        assert frames[0]["title"].to_list() == [None] * 3
        assert lab.nodes[1].context.metrics["details_missing"] > 0
    finally:
        charts.gate.mend()
        lab.close()


def test_titles_are_there_again_once_it_answers():
    lab = lab_with_hanging_repository()
    try:
        lab.charts.gate.hang()
        answers(lab, "revenue of product 1")
        lab.charts.gate.mend()

        def first_title():
            return answers(lab, "revenue of product 4")["title"][0]

        wait_until(lambda: first_title() is not None, "the read that hung has ended")
        assert first_title() == "Revenue of product 4"
    finally:
        lab.charts.gate.mend()
        lab.close()
