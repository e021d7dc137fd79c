"""What OpenAPI says of a service beyond what FastAPI finds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


def describing(app: FastAPI, amend: Callable[[dict[str, Any]], object]) -> None:
    """Have ``amend`` change the description of ``app``, once it is made."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            amend(made())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def bounding(app: FastAPI, model: type[BaseModel], **bounds: dict[str, Any]) -> None:
    """Have the description say of fields of ``model`` what the settings bound."""

    def amend(described: dict[str, Any]) -> None:
        for name, bound in bounds.items():
            _of_values(described["components"]["schemas"][model.__name__]["properties"][name]).update(bound)

    describing(app, amend)


def query_parameters(model: type[BaseModel], **bounds: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how OpenAPI describes what `from_query` reads. bounds: what it says of a field besides."""
    described = model.model_json_schema()
    parameters = []
    for name, schema in described["properties"].items():
        if "anyOf" in schema:  # what may be left out is not null in a URL
            schema = {**_of_values(schema), "description": schema["description"]}
        schema = {**schema, **bounds.get(name, {})}
        parameters.append(
            {"name": name, "in": "query", "required": name in described.get("required", ()), "schema": schema}
        )
    return parameters


def with_whole_bounds(described: Any) -> None:
    """Write whole bounds as whole numbers: FastAPI makes them floats, and 2**63 is then read as another number."""
    for name, value in described.items() if isinstance(described, dict) else enumerate(described):
        if isinstance(value, dict | list):
            with_whole_bounds(value)
        elif isinstance(value, float) and value.is_integer():
            described[name] = int(value)


def _of_values(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what is not null."""
    values: dict[str, Any] = schema["anyOf"][0] if "anyOf" in schema else schema
    return values
