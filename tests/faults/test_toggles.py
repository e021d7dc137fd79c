"""Toggles on running nodes, with threads and a real server: set for all, through a loss of Redis, off and on again."""

from __future__ import annotations

import time

from copilotlab import Chart, ChartRepository, Lab, Policy

# A busy machine stalls for a while; that is no outage, and no death, here.
QUICK = Policy(probe_interval=0.05, heartbeat_interval=0.5, redis_timeout=2.0, adopt_after=2.0)
LIMIT = 60.0  # seconds for what is certain to come


def chart(chart_id: int, title: str = "") -> Chart:
    return Chart(chart_id=chart_id, title=title or f"Revenue of product {chart_id}")


def wait_until(condition):
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.01)


def values(lab, name):
    return [node.context.toggles.now.value(name) for node in lab.nodes]


def test_what_is_set_for_all_outlives_redis_and_all_agree_once_it_is_on_again():
    charts = ChartRepository()
    charts.save_many([chart(chart_id) for chart_id in range(1, 51)])
    with Lab(nodes=3, model="hash", charts=charts, policy=QUICK) as lab:
        lab.wait_converged(LIMIT)
        lab.nodes[0].configure(everywhere=True, by="Ada", publishing=False, listening=False)
        wait_until(lambda: not any(values(lab, "publishing") + values(lab, "listening")))
        for number, node in enumerate(lab.nodes):
            assert node.update_chart(chart(1 + number, f"Held back {number}")).outcome == "local"
            assert node.update_chart(chart(9, f"Held back by {number}")).outcome == "local"
        lab.nodes[2].delete_chart(5)

        lab.redis.kill()
        wait_until(lambda: all(node.status()["redis"] == "away" for node in lab.nodes))
        lab.nodes[1].configure(everywhere=True, by="Bob", chunk_size=8)
        lab.redis.start(keep_data=False)
        lab.add_node()
        wait_until(lambda: values(lab, "chunk_size") == [8] * 4 and not any(values(lab, "publishing")))
        assert {toggle["set_by"] for toggle in lab.nodes[3].status()["toggles"]} == {"Ada", "Bob"}

        lab.nodes[3].configure(everywhere=True, publishing=True, listening=True)
        lab.wait_converged(LIMIT)
        assert all(values(lab, "publishing") + values(lab, "listening"))
        assert lab.nodes[0].update_chart(chart(60)).outcome in ("published", "deferred")
        lab.wait_converged(LIMIT)
