"""Errors over HTTP as problem details (RFC 9457): what went wrong, and how to mend it, never the inside."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from copilotlab.answer import NodeIncomplete
from copilotlab.charts import ChartError, ChartNotFound, RepositoryError
from copilotlab.embedding import EmbeddingError
from copilotlab.service.openapi import describing
from copilotlab.service.workers import Busy

MEDIA_TYPE = "application/problem+json"
_A_PROBLEM = {"$ref": "#/components/schemas/Problem"}

log = logging.getLogger("copilotlab.service")


class Problem(BaseModel):
    """What an error looks like."""

    type: str = Field("about:blank", description="what kind of problem, as a URI")
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["chart 7 is not in the repository"])
    request_id: str = Field("", description="as in the log, and in X-Request-ID")


class ProblemError(HTTPException):
    """Ends a request with a problem."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})


def problem(status: int, detail: str, request_id: str = "", headers: dict[str, str] | None = None) -> Response:
    """Return the response of a problem."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    body = msgspec.json.encode({**content, "request_id": request_id})
    return Response(body, status, headers=headers, media_type=MEDIA_TYPE)


def told_as_problems(app: FastAPI) -> None:
    """Have all that is raised in ``app`` answered as a problem."""
    describing(app, _say_media_type)

    def answer(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        return problem(status, detail, getattr(request.state, "request_id", ""), headers)

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods(app, request))  # not only those of the first route of this path
        return answer(request, error.status_code, str(error.detail), headers)

    def on_wrong_input(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        told = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:10]]
        return answer(request, 422, "; ".join(told))

    def on_busy(request: Request, error: Exception) -> Response:
        return answer(request, 503, str(error), {"Retry-After": "1"})

    def on_away(request: Request, error: Exception) -> Response:
        log.warning("%s: %s", type(error).__name__, error)
        return answer(request, 503, f"{_WHAT[_kind(error)]}; the log has more", {"Retry-After": "5"})

    def on_incomplete(request: Request, error: Exception) -> Response:
        return answer(request, 503, str(error), {"Retry-After": "1"})

    def on_missing(request: Request, error: Exception) -> Response:
        return answer(request, 404, str(error))

    def on_wrong_value(request: Request, error: Exception) -> Response:
        return answer(request, 422, str(error))

    def on_unknown(request: Request, error: Exception) -> Response:
        return answer(request, 500, "an unknown error; the log has it, under this request's id")

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_wrong_input)
    app.add_exception_handler(Busy, on_busy)
    app.add_exception_handler(NodeIncomplete, on_incomplete)
    app.add_exception_handler(RepositoryError, on_away)
    app.add_exception_handler(EmbeddingError, on_away)
    app.add_exception_handler(ChartNotFound, on_missing)
    app.add_exception_handler(ChartError, on_wrong_value)
    app.add_exception_handler(Exception, on_unknown)


def _say_media_type(described: dict[str, Any]) -> None:
    """Have OpenAPI say of each answer that is a `Problem` that it is told as one."""
    for operation in (operation for path in described["paths"].values() for operation in path.values()):
        for response in operation["responses"].values():
            content = response.get("content", {})
            for kind in [kind for kind, told in content.items() if told.get("schema") == _A_PROBLEM]:
                content[MEDIA_TYPE] = content.pop(kind)


def _methods(app: FastAPI, request: Request) -> list[str]:
    matching = (route for route in app.router.routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


_WHAT = {"repository": "the repository does not answer", "model": "the model fails"}


def _kind(error: Exception) -> str:
    return "repository" if isinstance(error, RepositoryError) else "model"
