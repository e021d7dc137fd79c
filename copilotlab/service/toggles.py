"""The toggles of a running node over HTTP: seen by GET /v1/toggles, set by PATCH."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, WithJsonSchema

from copilotlab.cluster import MOST_BY
from copilotlab.node import Node
from copilotlab.protocol.policy import Policy
from copilotlab.protocol.toggles import LONGEST, POLICY_FIELDS, SHORTEST, SWITCHES
from copilotlab.service.problems import ProblemError
from copilotlab.service.workers import Workers

MOST_CHANGES = 32  # in one request
PRINTABLE = r"^[ -~]+$"

ToggleName = Annotated[str, Field(min_length=1, max_length=40)]
ToggleValue = StrictBool | StrictInt | StrictFloat


def _described(name: str) -> dict[str, Any]:
    kind = "bool" if name in SWITCHES else next(field.type for field in fields(Policy) if field.name == name)
    bounds: dict[str, dict[str, Any]] = {
        "bool": {"type": "boolean"},
        "float": {"type": "number", "minimum": SHORTEST, "maximum": LONGEST},
        "int": {"type": "integer", "minimum": 1, "maximum": 4096},
    }
    return bounds[str(kind)]


DESCRIBED = {name: _described(name) for name in (*SWITCHES, *POLICY_FIELDS)}
"""The type and the bounds of each toggle, as OpenAPI has them."""
CHANGES = {
    "type": "object",
    "properties": DESCRIBED,
    "additionalProperties": False,
    "minProperties": 1,
}
"""What may be set, as OpenAPI has it; the node checks it, and says why something may not."""
IN_TWO_WAYS = {"required": ["everywhere", "node_id"], "properties": {"everywhere": {"const": True}}}


class TogglesBody(BaseModel):
    """What to set: toggles by name; on this node, on another (node_id), or everywhere. by: who sets it."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"set": {"publishing": False}, "everywhere": True, "by": "Ada"}],
            "not": IN_TWO_WAYS,  # type: ignore[dict-item]
        },
    )

    set: Annotated[dict[ToggleName, ToggleValue], WithJsonSchema(CHANGES)] = Field(max_length=MOST_CHANGES)
    everywhere: bool = False
    node_id: str | None = Field(None, min_length=1, max_length=200)
    by: str = Field("an admin over HTTP", min_length=1, max_length=200)


class ClusterTogglesBody(BaseModel):
    """What to set on one node of a cluster, or everywhere. set: toggles by name; node: which, "" for all nodes, also
    those that are away or come later; by: who sets it."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"set": {"publishing": False}, "node": "", "by": "Ada"}]},
    )

    set: Annotated[dict[ToggleName, ToggleValue], WithJsonSchema(CHANGES)] = Field(max_length=MOST_CHANGES)
    node: str = Field(max_length=200)
    by: str = Field("an admin over HTTP", min_length=1, max_length=MOST_BY, pattern=PRINTABLE)


class ToggleAnswer(BaseModel):
    """One toggle as it is in force on this node; where nobody has set it, version is 0 and the rest is empty."""

    name: str
    value: ToggleValue
    set_by: str
    set_on: str
    set_at: str
    everywhere: bool
    version: int


class TogglesAnswer(BaseModel):
    """All that can be set on a running node."""

    toggles: list[ToggleAnswer]


def toggles_router(
    node: Node,
    *,
    looks: Workers,
    changes: Workers,
    reader: Callable[..., object],
    admin: Callable[..., object],
    admit: Callable[[], None],
    responses: dict[int | str, dict[str, Any]],
) -> APIRouter:
    """Make the two routes.

    looks, changes: the threads on which the node is asked and changed; reader, admin: raise unless who asks has that
    role; admit: raises where there were too many calls; responses: the problems that both may answer with.
    """
    router = APIRouter(prefix="/v1/toggles", responses=responses)

    def shown() -> bytes:
        return msgspec.json.encode({"toggles": node.toggles()})

    def changed(body: TogglesBody) -> bytes:
        try:
            node.configure(everywhere=body.everywhere, node_id=body.node_id, by=body.by, **body.set)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ProblemError(422, str(error)) from error
        return shown()

    @router.get("", response_model=TogglesAnswer, dependencies=[Depends(reader)])
    async def toggles() -> Response:
        """List what can be set on this node while it runs, what is in force, and who set it, when."""
        return Response(await looks.run(shown), media_type="application/json")

    @router.patch("", response_model=TogglesAnswer, dependencies=[Depends(admin)])
    async def configure(body: TogglesBody) -> Response:
        """Set toggles on this node, on another one or everywhere, and list what is in force here then."""
        admit()
        return Response(await changes.run(lambda: changed(body)), media_type="application/json")

    return router
