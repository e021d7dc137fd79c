"""Schemathesis asks all that the OpenAPI description allows, and much that it does not; no check finds anything."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from copilotlab import ChartRepository, LocalRedis, Node, load_embedder
from copilotlab.embedding import EmbeddingError
from copilotlab.lab.simulated_lab import simulated_charts
from copilotlab.service import app as service_app
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings

TOKEN = "admin-token-0123456789"
EXAMPLES = 5  # of each call, beside those at the edges of what is allowed

NOBODY = create_app(
    Node(ChartRepository(), load_embedder("hash")), Settings(token=TOKEN)
)  # all nodes are described alike
SERVED = {"app": NOBODY}


async def served(scope, receive, send):
    """The application that runs, without its lifespan, which is the fixture's."""
    if scope["type"] == "http":
        await SERVED["app"](scope, receive, send)
        return
    for kind in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{kind}.complete"})


api = schemathesis.openapi.from_asgi("/openapi.json", served)


@pytest.fixture(scope="module", autouse=True)
def running():
    with pytest.MonkeyPatch.context() as patch, LocalRedis() as server, ChartRepository() as charts:
        patch.setattr(service_app, "load_embedder", _no_model)
        charts.save_many(simulated_charts(20))
        with Node(charts, load_embedder("hash"), server.url) as node:
            node.wait_complete(30)
            app = create_app(node, Settings(token=TOKEN, admin_per_minute=10_000))
            patch.setitem(SERVED, "app", app)
            with app.state.service.page.cluster as cluster:
                cluster.start()
                yield


def _no_model(name: str):
    raise EmbeddingError(f"no model {name!r}")


@api.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_call_answers_as_it_is_described_whatever_it_is_asked(case):
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})
