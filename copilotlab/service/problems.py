"""Errors over HTTP as problem details (RFC 9457): what went wrong, and how to mend it, never the inside."""

from __future__ import annotations

import logging
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from copilotlab.answer import NodeIncomplete
from copilotlab.charts import ChartError, ChartNotFound, RepositoryError
from copilotlab.embedding import EmbeddingError
from copilotlab.service.workers import Busy

MEDIA_TYPE = "application/problem+json"

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

    def answer(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        return problem(status, detail, getattr(request.state, "request_id", ""), headers)

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(request, error.status_code, str(error.detail), dict(error.headers or {}))

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


_WHAT = {"repository": "the repository does not answer", "model": "the model fails"}


def _kind(error: Exception) -> str:
    return "repository" if isinstance(error, RepositoryError) else "model"
