"""The settings of each command: flags, then the environment (COPILOTLAB_PORT, ...), then a TOML file, then defaults.

The names are the same in all three: ``--max-k``, ``COPILOTLAB_MAX_K`` and ``max_k``. A field of the policy is
``--policy.batch-timeout``, ``COPILOTLAB_POLICY__BATCH_TIMEOUT``, and ``batch_timeout`` in the table ``[policy]``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, create_model, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    CliSuppress,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from copilotlab.embedding import DEFAULT_MODEL
from copilotlab.protocol.policy import Policy, Precision
from copilotlab.urls import hide_password

if TYPE_CHECKING:
    from copilotlab.service.tokens import Tokens

HIDDEN = "**********"

_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "Precision": Precision}


class _PolicyFields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def made(self) -> Policy:
        """Make the policy. Raises ValueError for a value that makes no sense."""
        return Policy(**self.model_dump())

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self.made()
        return self


def _policy_settings() -> type[_PolicyFields]:
    """Return the fields of `Policy`, with its defaults, as flags and files know them."""
    known: dict[str, Any] = {field.name: (_TYPES[str(field.type)], field.default) for field in fields(Policy)}
    return create_model("PolicySettings", __base__=_PolicyFields, **known)


if TYPE_CHECKING:
    PolicySettings = _PolicyFields
else:
    PolicySettings = _policy_settings()


class SettingsError(ValueError):
    """The settings are not what they should be; the message names each, where it stands, and what was expected."""


class CommonSettings(BaseSettings):
    """What all commands share. Each derives its own from it, adds its fields, and reads them with `load_settings`.

    All may read one file: what is a setting of another command alone is passed over.
    """

    model_config = SettingsConfigDict(
        env_prefix="COPILOTLAB_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    charts: str = Field("sqlite:///charts.db", description="URL of the repository, as SQLAlchemy has it")
    config: Path | None = Field(None, description="a TOML file with these settings")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SharedFile(settings_cls)


class _SharedFile(TomlConfigSettingsSource):
    """The file without what only other commands know; what nobody knows stays, and is refused."""

    def __call__(self) -> dict[str, Any]:
        own = self.settings_cls.model_fields
        return {name: value for name, value in super().__call__().items() if name in own or not _is_of_another(name)}


class ClusterSettings(CommonSettings):
    """What a command is told that speaks to Redis."""

    redis: str = Field("redis://127.0.0.1:6379/0", description="URL of Redis")
    namespace: str = Field("", description="what this cluster's keys begin with")
    log: Literal["plain", "json"] = Field("plain", description="how log lines look")


class NodeSettings(ClusterSettings):
    """What a command is told that runs a node."""

    model: str = Field(DEFAULT_MODEL, description="the embedding model; see `copilotlab models`")
    node_id: str | None = Field(None, description="this node's name, unlike all others; random by default")
    policy: PolicySettings = Field(PolicySettings(), description="the choices of the protocol; all nodes have the same")


class ListeningSettings(ClusterSettings):
    """What a command is told that answers over HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; one that is not loopback needs a token")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    token: SecretStr | None = Field(None, description="a token for all that can be done; rather in the environment")
    tokens_file: Path | None = Field(None, description="a file with a line for each token: 'read|write|admin TOKEN'")
    max_body: int = Field(1_000_000, ge=1_000, description="the most bytes of a request's body")
    body_seconds: float = Field(10.0, gt=0, description="the longest that a body may take to arrive")
    admin_per_minute: int = Field(30, ge=1, description="the most admin calls in a minute")
    keep_alive: int = Field(75, ge=1, description="seconds that a connection may idle: more than a balancer's own")
    drain: float = Field(2.0, ge=0, description="seconds that it still answers once told to end, not ready any more")
    grace: float = Field(10.0, gt=0, description="seconds that requests under way get at the end")

    @model_validator(mode="after")
    def _has_a_token_where_it_needs_one(self) -> Self:
        tokens = self.tokens()  # one that is no good is said before a database or a model is opened
        if not is_loopback(self.host) and not len(tokens):
            raise ValueError(
                f"host={self.host!r} can be reached by others: set COPILOTLAB_TOKEN or tokens_file, or listen on "
                "127.0.0.1"
            )
        return self

    def tokens(self) -> Tokens:
        """Read the tokens. Raises ValueError for one that is too short, or a file that cannot be read."""
        from copilotlab.service.tokens import Tokens  # brings FastAPI, which other commands do without

        try:
            return Tokens.of(self.token.get_secret_value() if self.token else None, self.tokens_file)
        except OSError as error:
            raise ValueError(f"tokens_file: {error}") from error


class AdminSettings(ListeningSettings):
    """What `copilotlab admin` is told."""

    port: int = Field(8001, ge=0, le=65535, description="port to listen on; 0 takes a free one")


class Settings(NodeSettings, ListeningSettings):
    """What `copilotlab serve` is told. Make it with `load_settings`, which names the line that is wrong."""

    snapshot: Path | None = Field(None, description="a file of this node alone, which a restart begins with")
    open_search: bool = Field(False, description="search and read charts without a token")
    open_metrics: bool = Field(False, description="/metrics without a token")
    max_k: int = Field(100, ge=1, le=10_000, description="the most charts that one query may ask for")
    max_queries: int = Field(64, ge=1, le=1_000, description="the most queries in one request")
    max_chart_ids: int = Field(10_000, ge=1, description="the most chart ids that a search may be restricted to")
    search_threads: int = Field(4, ge=1, le=64, description="searches at the same time; more wait")
    write_threads: int = Field(8, ge=1, le=64, description="changes and reads of the repository at the same time")
    max_waiting: int = Field(256, ge=1, description="requests that wait for a thread; beyond, 503")


class ImportSettings(CommonSettings):
    """What `copilotlab import` is told. What a tool's server asks for rather stands in the environment."""

    format: CliPositionalArg[str] = Field(description="such as superset, metabase or grafana; auto: found by looking")
    path: CliPositionalArg[str] = Field(description="of the export: a file, a folder or a ZIP; or a URL")
    instance: str = Field("prod", description="which installation of the tool; it is part of each chart's key")
    base_url: str = Field("", description="where the tool is served, for links that the export lacks")
    query: str | None = Field(None, description="the SQL that gives the charts, where PATH is the URL of a database")
    allow_shrink: bool = Field(
        False, description="also where it is empty or half as large; with --watch, the first time alone"
    )
    dry_run: bool = Field(False, description="change nothing, and say what would be added, changed and deleted")
    skipped: Path | None = Field(None, description="a .csv file to write, with all that was skipped, and why")
    watch: float | None = Field(
        None, ge=1, le=30 * 86_400, description="read it again each so many seconds, until Ctrl-C"
    )
    import_token: SecretStr | None = Field(None, description="what a live server asks for; rather in the environment")
    import_user: str | None = Field(None, description="likewise")
    import_password: SecretStr | None = Field(None, description="likewise")
    policy: CliSuppress[PolicySettings] = Field(
        PolicySettings(), description="that of the nodes, to say when they follow"
    )

    @model_validator(mode="after")
    def _watches_what_it_changes(self) -> Self:
        if self.dry_run and self.watch is not None:
            raise ValueError("dry_run changes nothing, so that there is nothing to watch: leave out dry_run or watch")
        return self


def _is_of_another(name: str) -> bool:
    return name in Settings.model_fields or name in ImportSettings.model_fields


S = TypeVar("S", bound=CommonSettings)


class Effective(NamedTuple):
    """One setting as it is, and where it comes from: "flag", "environment", the TOML file with the line, "default"."""

    name: str
    value: str
    origin: str


def load_settings(
    kind: type[S], flags: Sequence[str] = (), *, program: str = "copilotlab serve"
) -> tuple[S, list[Effective]]:
    """Read all settings; return them, and each with its origin. Raises SettingsError; ``--help`` ends the program.

    kind: whose settings, as in `Settings`, those of `serve`. flags: as on the command line. program: its name in the
    help. A file is named by ``--config`` or COPILOTLAB_CONFIG.
    """
    path = _named_file(flags)
    text = _read(path) if path else ""

    class Chosen(kind):  # type: ignore[valid-type, misc]  # known when it runs
        model_config = SettingsConfigDict(toml_file=path)

    parser: CliSettingsSource[Any] = CliSettingsSource(Chosen, cli_prog_name=program, cli_parse_args=list(flags))
    try:
        settings = Chosen(_cli_settings_source=parser)
    except ValidationError as error:
        told = [_told(problem, path, text) for problem in error.errors()]
        raise SettingsError("; ".join(told)) from error
    return settings, _effective(settings, flags, path, text)


def _named_file(flags: Sequence[str]) -> Path | None:
    for place, flag in enumerate(flags):
        if flag == "--config" and place + 1 < len(flags):
            return Path(flags[place + 1])
        if flag.startswith("--config="):
            return Path(flag.partition("=")[2])
    named = os.environ.get("COPILOTLAB_CONFIG")
    return Path(named) if named else None


def _read(path: Path) -> str:
    try:
        text = path.read_text()
        tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    return text


def _line(text: str, place: Sequence[str]) -> int:
    """Return the line of a TOML text in which the value at ``place`` is set; 0 if it is not."""
    *tables, name = place
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            table = header[1].strip()
        else:
            here = name if table == ".".join(tables) else ".".join(place) if not table else ""
            if here and re.match(rf"""\s*["']?{re.escape(here)}["']?\s*=""", line):
                return number
    return 0


def _told(problem: Any, path: Path | None, text: str) -> str:
    place = [str(part) for part in problem["loc"]]
    if place == ["policy"] and (of_policy := re.match(r"Value error, Policy\((\w+)=", problem["msg"])):
        place.append(of_policy[1])
    line = _line(text, place) if place else 0
    where = f"{path}, line {line}: " if line else ""
    name = ".".join(place)
    said = problem["msg"].removeprefix("Value error, ")
    secret = "token" in name or "password" in name
    given = "" if not place or secret else f" (got {problem['input']!r})"
    return f"{where}{name}{': ' if name else ''}{said}{given}"


def _effective(settings: CommonSettings, flags: Sequence[str], path: Path | None, text: str) -> list[Effective]:
    rows = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        parts: list[tuple[tuple[str, ...], object]] = [((name,), value)]
        if isinstance(value, _PolicyFields):
            parts = [((name, field), given) for field, given in value]
        for place, part in parts:
            rows.append(Effective(".".join(place), _shown(place[-1], part), _origin(place, flags, path, text)))
    return rows


def _origin(place: tuple[str, ...], flags: Sequence[str], path: Path | None, text: str) -> str:
    flag = ".".join(place).replace("_", "-")
    given = {part.partition("=")[0].replace("_", "-") for part in flags if part.startswith("--")}
    if f"--{flag}" in given or f"--no-{flag}" in given:
        return "flag"
    variable = "COPILOTLAB_" + "__".join(place).upper()
    if variable in {name.upper() for name in os.environ}:
        return f"environment, {variable}"
    line = _line(text, place)
    return f"{path}, line {line}" if line else "default"


def _shown(name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return HIDDEN
    return hide_password(str(value)) if name in ("charts", "redis") else str(value)


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
