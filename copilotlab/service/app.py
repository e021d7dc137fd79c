"""The HTTP interface of one node: searches, changes, administration, diagnostics, health and metrics.

    app = create_app(node, Settings(...))

Every call of the node is made on a thread of `Workers`, so the event loop waits for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import polars as pl
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import generate_latest as exposition
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from copilotlab import __version__
from copilotlab.answer import Findings
from copilotlab.charts import Chart, chart_id_of
from copilotlab.cluster import Cluster
from copilotlab.embedding import load_embedder
from copilotlab.filters import FIELDS
from copilotlab.fusion import Mode
from copilotlab.monitoring import timeline
from copilotlab.monitoring.health import Health, health_of
from copilotlab.node import MAX_QUERY_LENGTH, ManyOptions, Node
from copilotlab.protocol.follower import Completeness
from copilotlab.reasons import short
from copilotlab.service.admin import AdminPage, OwnSite
from copilotlab.service.door import Door, Rate
from copilotlab.service.openapi import bounding, describing, query_parameters, with_whole_bounds
from copilotlab.service.problems import Problem, ProblemError, told_as_problems
from copilotlab.service.quick import QuickRoute, credentials, from_path, from_query
from copilotlab.service.settings import ListeningSettings, Settings
from copilotlab.service.toggles import toggles_router
from copilotlab.service.tokens import Guard
from copilotlab.service.workers import Workers

TOO_LARGE_ID = 2**63  # a power of two, which OpenAPI's numbers hold exactly
MOST_LISTED = 1_000  # charts in one page of the list
# As OpenAPI describes them: what fits is taken; more than that may be, since `Chart` checks them.
KEY = r"^$|^[^:\s\x00]+:[^:\s\x00]+:[^\s\x00][^\x00]*$"
WEB_URL = r"^$|^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?([/?#][!-~]*)?$"
REQUIRE_COMPLETE = "answer with 503 and the reason where this node lacks charts"
GRACES_ALONE = 4  # rejoin graces without Redis before a service that holds nothing embeds what others may hold
TIMELINE = 200  # lines of the journal in the diagnostics

log = logging.getLogger("copilotlab.service")

ChartId = Annotated[int, Path(ge=0, lt=TOO_LARGE_ID, description="the chart's id", examples=[7])]
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
Whole = BeforeValidator(lambda given: int(given) if isinstance(given, float) and given.is_integer() else given)  # 7.0
AnId = Annotated[int, Field(ge=0, lt=TOO_LARGE_ID), Whole]
TEXT = r"^[^\x00]*$"  # no database keeps a null character
WORDS = r"^[^\x00]*[^\s\x00][^\x00]*$"  # and not blank
Word = Annotated[str, Field(min_length=1, max_length=200, pattern=WORDS)]
MOST_FILTERS = 100  # values that one request may filter by, of a field or in all
AValue = Annotated[str, Field(max_length=200, pattern=TEXT)]
Values = AValue | Annotated[list[AValue], Field(max_length=MOST_FILTERS)]
AFilter = Annotated[str, Field(max_length=220, pattern=rf"^({'|'.join(FIELDS)}):[^\x00]*$", examples=["source:Sales"])]
ONLY_CHARTS = "only these charts"
ONLY_WHERE = "only charts that have one of the given values for each field that is named, as in source:Sales"
BY_MODE = "by meaning, by words (typos do little harm), or by both"
COLLAPSE = "of near-copies, show the best alone, with the number of the others"
AQuery = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_LENGTH, pattern=r"\S")]


# --- what goes in and out ---------------------------------------------------------------------------------------------


class ChartBody(BaseModel):
    """A chart, without its id."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"title": "Revenue by region", "measures": ["Revenue"], "tags": ["finance"]}]},
    )

    title: str = Field(min_length=1, max_length=500, pattern=WORDS)
    description: str = Field("", max_length=10_000, pattern=TEXT)
    chart_type: str = Field("", max_length=200, pattern=TEXT)
    dimensions: list[Word] = Field([], max_length=64)
    measures: list[Word] = Field([], max_length=64)
    source: str = Field("", max_length=200, pattern=TEXT)
    tags: list[Word] = Field([], max_length=64)
    key: str = Field(
        "",
        max_length=500,
        json_schema_extra={"pattern": KEY},
        description="format:instance:native id; the chart's id follows from it",
    )
    url: str = Field(
        "",
        max_length=2_000,
        json_schema_extra={"pattern": WEB_URL},
        description="what opens the chart in its own tool: http or https",
    )


class ChartAnswer(ChartBody):
    """A chart as the repository has it."""

    chart_id: int
    revision: int


class Why(BaseModel):
    """Which words of a chart were asked for, and what parts its score has; meaning is null where it does not count."""

    matched: list[str]
    meaning: float | None
    words: float


class FoundChart(BaseModel):
    """A chart that a search found; what is null could not be read in time.

    copies: near-copies of it that are not shown; only where they are collapsed. why: only where words count.
    """

    rank: int
    chart_id: int
    score: float
    title: str | None
    chart_type: str | None
    source: str | None
    dimensions: list[str] | None
    measures: list[str] | None
    tags: list[str] | None
    description: str | None
    key: str | None
    url: str | None
    copies: int | None = None
    why: Why | None = None


class Held(BaseModel):
    """How much of the repository the node held when it was asked, as of its last look at it.

    expected is null before the first look; reason: why answers may lack charts, "" where nothing is missing.
    """

    held: int
    expected: int | None
    reason: str = Field(examples=["the model fails"])


class Found(BaseModel):
    """What one query found, best first."""

    query: str
    results: list[FoundChart]


class Answer(Found):
    """What one query found, best first, and whether that was among all charts."""

    complete: bool
    completeness: Held


class Answers(BaseModel):
    """What several queries found, in their order, and whether that was among all charts."""

    answers: list[Found]
    complete: bool
    completeness: Held


class LikeChart(BaseModel):
    """Charts like one, best first, and whether that was among all charts."""

    chart_id: int
    results: list[FoundChart]
    complete: bool
    completeness: Held


class Facet(BaseModel):
    """How many charts have a word that searches can filter by."""

    field: str = Field(examples=["source"])
    value: str = Field(examples=["Sales"])
    charts: int


class Facets(BaseModel):
    """The words that searches can filter by, the most frequent first within a field, and whether all were counted."""

    facets: list[Facet]
    complete: bool
    completeness: Held


class Filter(BaseModel):
    """For each field that is given, a value or several, of which a chart has one."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"source": ["Sales", "HR"]}]}
    )

    source: Values | None = None
    chart_type: Values | None = None
    tags: Values | None = None
    dimensions: Values | None = None
    measures: Values | None = None
    instance: Values | None = None


class Question(BaseModel):
    """Several queries, or one that is restricted to many charts."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"queries": ["revenue per region", "late orders"], "k": 5}]},
    )

    queries: list[AQuery] = Field(min_length=1)
    k: Annotated[int, Field(ge=1), Whole] = 10
    chart_ids: list[AnId] | None = None
    where: Filter | None = None
    mode: Mode = Field("meaning", description=BY_MODE)
    collapse: bool = Field(False, description=COLLAPSE)
    require_complete: bool = Field(False, description=REQUIRE_COMPLETE)


class AskedLike(BaseModel):
    """What is asked besides a query or a chart, as it stands in a URL."""

    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, ge=1, description="how many charts")
    chart_id: list[AnId] | None = Field(None, description=ONLY_CHARTS)
    where: Annotated[list[AFilter], Field(max_length=MOST_FILTERS)] | None = Field(None, description=ONLY_WHERE)
    collapse: bool = Field(False, description=COLLAPSE)
    require_complete: bool = Field(False, description=REQUIRE_COMPLETE)

    def options(self) -> ManyOptions:
        """Return what a node's search takes."""
        return {
            "chart_ids": self.chart_id,
            "where": _where(self.where),
            "collapse": self.collapse,
            "require_complete": self.require_complete,
        }


class Asked(AskedLike):
    """One query, as it stands in a URL."""

    q: AQuery = Field(examples=["revenue per region"])
    mode: Mode = Field("meaning", description=BY_MODE)

    def options(self) -> ManyOptions:
        """Return what a node's search takes."""
        return {**super().options(), "mode": self.mode}


class Changed(BaseModel):
    """What became of a change: see `UpdateResult`."""

    outcome: str = Field(examples=["published"])
    revision: int


class Page(BaseModel):
    """Ids of charts that this node holds. next: give it as ``after`` for the next page; null at the end."""

    chart_ids: list[int]
    next: int | None


class Accepted(BaseModel):
    """What has begun; /v1/status tells how it goes."""

    action: str


class ModelName(BaseModel):
    """A name for `load_embedder`."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "wordllama"}]})

    name: str = Field(min_length=1, max_length=300)


A_BODY = (400, 408)  # what may be wrong with one, besides


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in (*statuses, 401, 403, 413, 422, 500, 503)}


# --- the service ------------------------------------------------------------------------------------------------------


class Service:
    """One node behind HTTP. held_back: why it is not ready although it could answer; "" if it is."""

    def __init__(self, node: Node, settings: Settings) -> None:
        self.node = node
        self.settings = settings
        self.held_back = ""
        self.check = Guard(settings.tokens()).check
        self._admin_calls = Rate(settings.admin_per_minute)
        self._acting = ""  # the long action under way
        self._acted: dict[str, str] = {}  # what became of the last one of each kind
        most = settings.max_waiting
        self.searches = Workers("search", settings.search_threads, most)
        self.changes = Workers("write", settings.write_threads, most)
        self.looks = Workers("look", 2, most)
        self.actions = Workers("act", 1, 1)
        cluster = Cluster(
            node.coordinator.link.carrier.another(),
            node.context.namespace,
            charts=node.charts,
            policy=node.policy,
            clock=node.clock,
            start=False,
        )
        self.page = AdminPage(cluster, node_id=node.node_id, admit=self.admit)
        self._registry = CollectorRegistry()
        self._registry.register(node.collector())
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    @asynccontextmanager
    async def life(self, _app: FastAPI) -> AsyncIterator[None]:
        """Start the node, and stop it at the end: it gives its lease back and leaves Redis, within a bound."""
        try:
            await self.actions.run(self.node.start)
            await self.actions.run(self.page.cluster.start)
            log.info("node %s serves", self.node.node_id)
            filling = asyncio.create_task(self._fill_without_redis())
            try:
                yield
            finally:
                filling.cancel()
        finally:
            self.hold_back("the service is ending")
            self.page.cluster.let_go()
            await asyncio.to_thread(self.node.stop, self.settings.grace)
            await asyncio.to_thread(self.page.cluster.close)
            for workers in (self.searches, self.changes, self.looks, self.actions):
                workers.end()
            log.info("node %s has ended", self.node.node_id)

    def listens_at(self, url: str) -> None:
        """Note where this service can be reached: the node tells it to the cluster's watchers."""
        self.node.address = url

    def hold_back(self, why: str) -> None:
        """Be not ready from now on, so that no new requests are sent here."""
        self.held_back = why
        self.page.ending = True

    async def _fill_without_redis(self) -> None:
        """See to the first fill where Redis stays away: with nobody to fetch from, this node embeds by itself.

        A node leaves that to who calls `Node.rebuild`. Of a service that is begun again in an outage, nobody does.
        """
        policy, vitals = self.node.policy, await asyncio.to_thread(self.node.vitals)
        patience = GRACES_ALONE * policy.rejoin_grace
        while not vitals.filled:
            if vitals.redis != "connected" and vitals.away_for >= patience and not self._acting:
                await self._act("first fill without Redis", lambda: self.node.rebuild().outcome)
            await asyncio.sleep(policy.heartbeat_interval)
            vitals = await asyncio.to_thread(self.node.vitals)

    # --- answers ----------------------------------------------------------------------------------------------

    def bounded(self, queries: list[str], k: int, chart_ids: list[int] | None) -> None:
        """Raise ProblemError for more than may be asked at once."""
        settings = self.settings
        if k > settings.max_k:
            raise ProblemError(422, f"k={k}: expected at most {settings.max_k}, which is max_k")
        if len(queries) > settings.max_queries:
            raise ProblemError(422, f"{len(queries)} queries: expected at most {settings.max_queries}")
        if chart_ids is not None and len(chart_ids) > settings.max_chart_ids:
            raise ProblemError(422, f"{len(chart_ids)} chart_ids: expected at most {settings.max_chart_ids}")
        for query in queries:
            if not 1 <= len(query.strip()) <= MAX_QUERY_LENGTH:
                raise ProblemError(422, f"a query of {len(query.strip())} characters: expected 1 to {MAX_QUERY_LENGTH}")

    def search(self, asked: Asked) -> bytes:
        """Answer one query, as JSON."""
        found = self.node.find(asked.q, asked.k, **asked.options())
        return msgspec.json.encode({**_answer(asked.q, found), **_held(found.completeness)})

    def like(self, chart_id: int, asked: AskedLike) -> bytes:
        """Return charts like one, as JSON. Raises ChartNotFound where that is not here."""
        found = self.node.find(None, asked.k, like=chart_id, **asked.options())
        return msgspec.json.encode({"chart_id": chart_id, "results": found.rows(), **_held(found.completeness)})

    def facets(self, where: list[str] | None, limit: int) -> bytes:
        """Count charts by what searches can filter by, as JSON; of each field, at most ``limit`` values."""
        counted = self.node.facets(_where(where))
        assert counted.completeness is not None
        first = counted.group_by("field", maintain_order=True).head(limit)
        return msgspec.json.encode({"facets": first.to_dicts(), **_held(counted.completeness)})

    def search_many(self, asked: Question) -> bytes:
        """Answer several queries, as JSON, in their order."""
        found = self.node.find_many(
            asked.queries,
            asked.k,
            chart_ids=asked.chart_ids,
            where=None if asked.where is None else asked.where.model_dump(exclude_none=True),
            collapse=asked.collapse,
            mode=asked.mode,
            require_complete=asked.require_complete,
        )
        answers = [_answer(query, one) for query, one in zip(asked.queries, found, strict=True)]
        return msgspec.json.encode({"answers": answers, **_held(found[0].completeness)})

    def chart(self, chart_id: int) -> bytes:
        """Return a chart as the repository has it, as JSON. Raises ProblemError if there is none."""
        change = self.node.charts.get_many([chart_id]).get(chart_id)
        if change is None or change.chart is None:
            raise ProblemError(404, f"chart {chart_id} is not in the repository")
        return msgspec.json.encode({**asdict(change.chart), "revision": change.revision})

    def listed(self, after: int, limit: int) -> bytes:
        """Return the ids of charts that this node holds, as JSON."""
        manifest = self.node.store.manifest(after, limit)
        chart_ids = manifest.chart_ids.tolist()
        further = chart_ids[-1] if len(chart_ids) == limit else None
        return msgspec.json.encode({"chart_ids": chart_ids, "next": further})

    def status(self) -> bytes:
        """Return all that is known of the node, as JSON."""
        node, vitals = self.node, self.node.vitals()
        lines = timeline([node.journal], start=0.0).tail(TIMELINE)
        return msgspec.json.encode(
            {
                "version": __version__,
                "status": node.status(),
                "policy": asdict(node.policy),
                "peers": [msgspec.structs.asdict(peer) for peer in vitals.peers],
                "alerts": [alert.as_dict(vitals.at) for alert in node.alerts.active()],
                "health": self.health(),
                "metrics": node.metrics(),
                "skipped": node.skipped().to_dicts(),
                "actions": {"under_way": self._acting, **self._acted},
                "timeline": lines.with_columns((vitals.at - pl.col("seconds")).alias("seconds_ago"))
                .drop("seconds")
                .to_dicts(),
            }
        )

    def alerts(self) -> bytes:
        """Return the alerts that are raised, as JSON."""
        now = self.node.clock.now()
        return msgspec.json.encode({"alerts": [alert.as_dict(now) for alert in self.node.alerts.active()]})

    def health(self) -> Health:
        """Judge how the node is."""
        return health_of(self.node.vitals(), self.node.alerts.active(), held_back=self.held_back)

    def metrics(self) -> bytes:
        """Return all metrics, of the process too, as Prometheus reads them."""
        return exposition(self._registry)

    # --- actions that take long -------------------------------------------------------------------------------

    def admit(self) -> None:
        """Count an admin call. Raises ProblemError where there were too many."""
        _admit(self._admin_calls, self.settings.admin_per_minute)

    def begin(self, action: str, do: Callable[[], object]) -> bytes:
        """Begin a long action, one at a time, and answer at once. Raises ProblemError."""
        self.admit()
        if self._acting:
            raise ProblemError(409, f"{self._acting} is under way: see /v1/status")
        self._acting = action
        self._task = asyncio.create_task(self._act(action, do))  # held, so that it is not collected
        return msgspec.json.encode({"action": action})

    async def _act(self, action: str, do: Callable[[], object]) -> None:
        self._acting = action
        log.info("%s begins", action)
        try:
            self._acted[action] = str(await self.actions.run(do))
        except Exception as error:
            self._acted[action] = f"failed: {error!r}"
            log.error("%s failed", action, exc_info=error)
        finally:
            self._acting = ""

    def switch_model(self, name: str) -> str:
        """Load a model and switch the node to it."""
        self.node.switch_model(load_embedder(name))
        return self.node.embedder.fingerprint


def create_admin(cluster: Cluster, settings: ListeningSettings) -> tuple[FastAPI, AdminPage]:
    """Make an application of the admin page alone, and the page: all nodes of a cluster, watched without one."""
    app = FastAPI(title="copilotlab admin", version=__version__, openapi_url=None)
    rate = Rate(settings.admin_per_minute)
    page = AdminPage(cluster, admit=lambda: _admit(rate, settings.admin_per_minute))

    @app.get("/livez")
    async def livez() -> dict[str, bool]:
        """Tell that the process answers."""
        return {"alive": True}

    app.include_router(page.router(Guard(settings.tokens()).check))
    _guarded(app, settings, page)
    return app, page


def _guarded(app: FastAPI, settings: ListeningSettings, page: AdminPage) -> None:
    """Tell errors as problems, and put before all routes what every request has to pass: the door, then its site."""
    told_as_problems(app)
    app.add_middleware(OwnSite)
    app.add_middleware(Door, max_body=settings.max_body, body_seconds=settings.body_seconds, ending=lambda: page.ending)


def _admit(calls: Rate, most: int) -> None:
    if wait := calls.admit():
        raise ProblemError(429, f"more than {most} admin calls a minute", Retry_After=str(int(wait) + 1))


def create_app(node: Node, settings: Settings) -> FastAPI:
    """Make the application. It starts the node, and stops it at its end. Raises ValueError for a token that is no good,
    ImportError without prometheus_client."""
    service = Service(node, settings)
    app = FastAPI(
        title="copilotlab",
        version=__version__,
        summary="Find charts by meaning, from one node's memory",
        lifespan=service.life,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        telemetry={"exclude": _may_ask_in_its_url},
    )
    app.state.service = service

    # async, or each would be called on yet another thread

    async def searcher(given: Given) -> None:
        service.check("read", given, opened=settings.open_search)

    async def reader(given: Given) -> None:
        service.check("read", given)

    async def scraper(given: Given) -> None:
        service.check("read", given, opened=settings.open_metrics)

    async def writer(given: Given) -> None:
        service.check("write", given)

    async def admin(given: Given) -> None:
        service.check("admin", given)

    async def on(workers: Workers, call: Callable[[], bytes]) -> Response:
        return _json(await workers.run(call))

    # What begins something long: it is answered at once.
    action: dict[str, Any] = {
        "status_code": 202,
        "response_model": Accepted,
        "responses": _responses(*A_BODY, 409, 429),
        "dependencies": [Depends(admin)],
    }

    async def search(request: Request) -> Response:
        """Find the charts nearest in meaning to one query."""
        service.check("read", credentials(request), opened=settings.open_search)
        asked = from_query(request, Asked, many=("chart_id", "where"))
        service.bounded([asked.q], asked.k, asked.chart_id)
        return await on(service.searches, lambda: service.search(asked))

    async def like(request: Request) -> Response:
        """Find the charts nearest in meaning to one chart, which is left out."""
        service.check("read", credentials(request), opened=settings.open_search)
        chart_id = from_path(request, "chart_id", AnId)
        asked = from_query(request, AskedLike, many=("chart_id", "where"))
        service.bounded([], asked.k, asked.chart_id)
        return await on(service.searches, lambda: service.like(chart_id, asked))

    bounds = {"k": {"maximum": settings.max_k}, "chart_id": {"maxItems": settings.max_chart_ids}}
    a_chart = {"name": "chart_id", "in": "path", "required": True, "schema": TypeAdapter(AnId).json_schema()}
    for path, endpoint, question, answer, in_path, statuses in (
        ("/v1/search", search, Asked, Answer, [], ()),
        ("/v1/charts/{chart_id}/like", like, AskedLike, LikeChart, [a_chart], (404,)),
    ):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            response_model=answer,
            responses=_responses(*statuses),
            openapi_extra={
                "parameters": [*in_path, *query_parameters(question, **bounds)],
                "security": [{"HTTPBearer": []}],
            },
            route_class_override=QuickRoute,
        )

    @app.post("/v1/search", response_model=Answers, responses=_responses(*A_BODY), dependencies=[Depends(searcher)])
    async def search_many(question: Question) -> Response:
        """Answer several queries at once."""
        service.bounded(question.queries, question.k, question.chart_ids)
        return await on(service.searches, lambda: service.search_many(question))

    @app.get("/v1/facets", response_model=Facets, responses=_responses(), dependencies=[Depends(searcher)])
    async def facets(
        where: Annotated[list[AFilter], Query(max_length=MOST_FILTERS, default_factory=list, description=ONLY_WHERE)],
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="how many values of each field")] = 100,
    ) -> Response:
        """Count the charts by each word that searches can filter by."""
        return await on(service.looks, lambda: service.facets(where, limit))

    @app.get("/v1/charts", response_model=Page, responses=_responses(), dependencies=[Depends(searcher)])
    async def charts(
        after: Annotated[int, Query(ge=-1, lt=TOO_LARGE_ID)] = -1,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 100,
    ) -> Response:
        """List the ids of the charts that this node holds, by id."""
        return await on(service.looks, lambda: service.listed(after, limit))

    @app.get(
        "/v1/charts/{chart_id}",
        response_model=ChartAnswer,
        responses=_responses(404),
        dependencies=[Depends(searcher)],
    )
    async def get_chart(chart_id: ChartId) -> Response:
        """Read a chart from the repository."""
        return await on(service.changes, lambda: service.chart(chart_id))

    @app.put(
        "/v1/charts/{chart_id}",
        response_model=Changed,
        responses=_responses(*A_BODY, 409),
        dependencies=[Depends(writer)],
    )
    async def put_chart(chart_id: ChartId, body: ChartBody) -> Response:
        """Save a chart, embed it, and tell the other nodes."""
        if body.key and chart_id != chart_id_of(body.key):
            raise ProblemError(409, f"the chart with the key {short(body.key)} has the id {chart_id_of(body.key)}")
        chart = Chart(chart_id=chart_id, **body.model_dump())
        return await on(service.changes, lambda: msgspec.json.encode(node.update_chart(chart)._asdict()))

    @app.delete(
        "/v1/charts/{chart_id}", response_model=Changed, responses=_responses(404), dependencies=[Depends(writer)]
    )
    async def delete_chart(chart_id: ChartId) -> Response:
        """Delete a chart, and tell the other nodes."""
        return await on(service.changes, lambda: msgspec.json.encode(node.delete_chart(chart_id)._asdict()))

    @app.post("/v1/rebuild", **action)
    async def rebuild() -> Response:
        """Begin to bring the whole catalogue into all nodes."""
        return _json(service.begin("rebuild", lambda: node.rebuild().outcome), 202)

    @app.post("/v1/sync", **action)
    async def sync() -> Response:
        """Begin to make this node hold what the repository holds."""
        return _json(service.begin("sync", lambda: node.sync().outcome), 202)

    @app.post("/v1/model", **action)
    async def model(body: ModelName) -> Response:
        """Begin to switch to another model; searches go on with the present one until it is complete."""
        return _json(service.begin("model", lambda: service.switch_model(body.name)), 202)

    @app.get("/v1/status", responses=_responses(), dependencies=[Depends(reader)])
    async def status() -> Response:
        """Tell all that is known of the node: status, policy, peers, alerts, health, metrics, timeline."""
        return await on(service.looks, service.status)

    @app.get("/v1/alerts", responses=_responses(), dependencies=[Depends(reader)])
    async def alerts() -> Response:
        """List what has been wrong for longer than it should, with evidence and what to do."""
        return await on(service.looks, service.alerts)

    @app.get("/livez")
    async def livez() -> Response:
        """Tell that the process answers."""
        return _json(b'{"live":true}')

    @app.get("/readyz", responses={503: {"description": "before the first fill, or ending; with the reasons"}})
    async def readyz() -> Response:
        """Tell whether this node may be asked; it may while Redis is away."""
        health = await service.looks.run(service.health)
        body = {"ready": health.ready, "reasons": health.not_ready}
        return _json(msgspec.json.encode(body), 200 if health.ready else 503)

    @app.get("/healthz", responses={503: {"description": "something is wrong; with the reasons"}})
    async def healthz() -> Response:
        """Tell whether all is well, and what is not."""
        health = await service.looks.run(service.health)
        return _json(msgspec.json.encode(health), 200 if health.well else 503)

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_responses(),
        dependencies=[Depends(scraper)],
    )
    async def metrics() -> Response:
        """Give all metrics as Prometheus reads them."""
        return Response(await service.looks.run(service.metrics), media_type=CONTENT_TYPE_LATEST)

    app.include_router(
        toggles_router(
            node,
            looks=service.looks,
            changes=service.changes,
            reader=reader,
            admin=admin,
            admit=service.admit,
            responses=_responses(*A_BODY, 429),
        )
    )
    app.include_router(service.page.router(service.check))
    describing(app, with_whole_bounds)
    bounding(
        app,
        Question,
        queries={"maxItems": settings.max_queries},
        k={"maximum": settings.max_k},
        chart_ids={"maxItems": settings.max_chart_ids},
    )
    _guarded(app, settings, service.page)
    return app


def _may_ask_in_its_url(scope: MutableMapping[str, Any]) -> bool:
    """Tell whether there may be a question in a request's URL: FastAPI would write that into its span."""
    return bool(scope.get("query_string"))


def _where(filters: list[str] | None) -> dict[str, list[str]] | None:
    """Return filters of a URL, as in source:Sales, as a search takes them."""
    if not filters:
        return None
    found: dict[str, list[str]] = {}
    for field, _, value in (each.partition(":") for each in filters):
        found.setdefault(field, []).append(value)
    return found


def _answer(query: str, found: Findings) -> dict[str, object]:
    return {"query": query, "results": found.rows()}


def _held(completeness: Completeness) -> dict[str, object]:
    return {"complete": completeness.complete, "completeness": completeness._asdict()}


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
