"""`read_catalogue`: which importer reads what is given, and what it says of it."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from copilotlab.importers import grafana, metabase, superset, tables
from copilotlab.importers.catalogue import Catalogue, catalogue_of, check_instance
from copilotlab.importers.dbt import Dbt
from copilotlab.importers.documents import documents
from copilotlab.importers.draft import CatalogueError, Document, Reader, Skipped
from copilotlab.importers.grafana import Grafana
from copilotlab.importers.lightdash import Lightdash
from copilotlab.importers.looker import Looker
from copilotlab.importers.metabase import Metabase
from copilotlab.importers.saved_objects import SavedObjects
from copilotlab.importers.server import Refused, Server
from copilotlab.importers.superset import Superset
from copilotlab.reasons import short
from copilotlab.urls import hide_password

_READERS: dict[str, Callable[[str], Reader]] = {
    "superset": Superset,
    "metabase": Metabase,
    "grafana": Grafana,
    "opensearch": partial(SavedObjects, "opensearch"),
    "kibana": partial(SavedObjects, "kibana"),
    "dbt": Dbt,
    "lightdash": Lightdash,
    "looker": Looker,
}
_SAY_THEIR_LINKS = ("dbt", tables.FORMAT)  # whatever the base_url
_LOOKING = (Superset, Metabase, Grafana, partial(SavedObjects, None), Dbt, Lightdash, Looker)
FORMATS = (*_READERS, tables.FORMAT)


def read_catalogue(
    path: str | Path,
    format: str | None = None,
    instance: str = "prod",
    *,
    query: str | None = None,
    base_url: str = "",
    token: str = "",
    user: str = "",
    password: str = "",
    timeout: float = 30.0,
) -> Catalogue:
    """Read the charts of a BI tool from its export or its server, or those in a table of your own.

    Bad charts never stop the good ones: they are in `Catalogue.skipped`, each with the reason. Nothing that is read is
    trusted: sizes, nesting and names are bounded, and no code of an export is run.

    path: of an export; of a .csv, .tsv, .jsonl, .ndjson, .parquet or .xlsx file with columns as `Chart` has them; an
    SQLAlchemy URL; or the address of a server of Superset, Metabase or Grafana.
    format: "superset", "metabase", "grafana", "opensearch", "kibana", "dbt", "lightdash", "looker" or "table"; None
    finds it by looking.
    instance: which installation of the tool this is; it is part of each chart's key.
    query: with an SQLAlchemy URL, the SQL that gives the charts.
    base_url: where the tool is served, such as "https://bi.example.org", for links to charts whose export does not name
    it (of Superset: the server that exported them, since files are named by its numbers); of a server, its own address.
    token: an API key of Metabase, a service account's token of Grafana, an access token of Superset.
    user, password: with which Superset or Grafana is asked in place of a token.
    timeout: seconds that a database or server may be silent.

    Raises CatalogueError where nothing can be read at all, more than one format is there, or another one than is named.
    """
    check_instance(instance)
    if format is not None and format not in FORMATS:
        raise CatalogueError(
            f"format={short(format)}: expected one of {', '.join(FORMATS)}, or None to find it by looking"
        )
    if str(path).startswith(("http://", "https://")):
        return _of_server(str(path), format, instance, token, user, password, timeout)
    if "://" in str(path):
        return _of_query(str(path), format, instance, query, timeout)
    if query is not None:
        raise CatalogueError(
            f"query={short(query)} goes with an SQLAlchemy URL, as in sqlite:///mine.db, not with {path}"
        )
    path = Path(path)
    if format == tables.FORMAT or (format is None and tables.is_table(path)):
        return catalogue_of(tables.of_file(path), tables.FORMAT, instance)
    if tables.is_table(path):
        raise CatalogueError(f"{path} is no export of {format}: it is a table, so say format={tables.FORMAT!r}")
    makers = _LOOKING if format is None else (_READERS[format],)
    readers = [make(base_url) for make in makers]
    catalogue = _of_documents(documents(path), str(path), readers, instance, has_base=bool(base_url))
    if format is not None and not len(catalogue):
        _check_format(path, format)
    return catalogue


def _check_format(path: Path, format: str) -> None:
    """Raise CatalogueError where nothing is of the format that was named, and something of another."""
    readers = [_READERS[format](""), *(make("") for make in _LOOKING)]
    taken, _, _ = _taken(documents(path), readers)
    found = {readers[place].format: number for place, number in taken.most_common()}
    if found and 0 not in taken:
        like = " and ".join(
            f"{name} ({number:,} {'files' if number > 1 else 'file'})" for name, number in found.items()
        )
        raise CatalogueError(
            f"nothing in {path} is {format}; it looks like {like}: name that in its place, as in "
            f"format={next(iter(found))!r}"
        )


def _of_server(
    url: str, format: str | None, instance: str, token: str, user: str, password: str, timeout: float
) -> Catalogue:
    headers = {}
    if token:
        headers = {"X-API-KEY": token} if format == "metabase" else {"Authorization": f"Bearer {token}"}
    if format is None:
        with Server(url, {}, timeout) as server:  # who it is, it says without a token
            format = _looked_for(server)
        return _of_server(url, format, instance, token, user, password, timeout)
    if format == "grafana" and user:
        headers = {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    with Server(url, headers, timeout) as server:
        given: Iterator[Document | Skipped]
        if format == "superset":
            given = superset.of_server(server, user, password)
        elif format == "metabase":
            given = metabase.of_server(server)
        elif format == "grafana":
            given = grafana.of_server(server)
        else:
            raise CatalogueError(f"format={format!r} is not read from a server: give an export of it")
        return _of_documents(given, server.url, [_READERS[format](server.url)], instance, has_base=True)


def _looked_for(server: Server) -> str:
    """Return which tool's server this is, by what it says of its health."""
    try:
        health = server.get("/api/health")
    except Refused:
        health = None
    if isinstance(health, dict) and "database" in health:
        return "grafana"
    if isinstance(health, dict) and "status" in health:
        return "metabase"
    raise CatalogueError(f"{server.url} does not say at /api/health what it is: say it, as in format='superset'")


def _of_query(url: str, format: str | None, instance: str, query: str | None, timeout: float) -> Catalogue:
    shown = hide_password(url)
    if query is None:
        raise CatalogueError(
            f"{shown}: query=None; expected the SQL that gives the charts, as in SELECT id, title FROM charts"
        )
    if format not in (None, tables.FORMAT):
        raise CatalogueError(f"format={format!r}: what a query gives is a {tables.FORMAT!r}")
    return catalogue_of(tables.of_database(url, query, timeout), tables.FORMAT, instance)


def _of_documents(
    given: Iterable[Document | Skipped], origin: str, readers: Sequence[Reader], instance: str, *, has_base: bool
) -> Catalogue:
    """Give each document to the first reader that takes it, and make a catalogue of what the only one took."""
    taken, unread, count = _taken(given, readers)
    if len(readers) > 1 and len(taken) != 1:
        raise CatalogueError(_which(origin, count, {readers[n].format: m for n, m in taken.most_common()}, unread))
    reader = readers[next(iter(taken), 0)]
    knows_links = has_base or reader.format in _SAY_THEIR_LINKS
    return catalogue_of(chain(reader.charts(), unread), reader.format, instance, knows_links=knows_links)


def _taken(given: Iterable[Document | Skipped], readers: Sequence[Reader]) -> tuple[Counter[int], list[Skipped], int]:
    """Give each document to the first reader that takes it.

    Return how many documents each took, by its place; what could not be read; and how many documents there were.
    """
    taken: Counter[int] = Counter()
    unread: list[Skipped] = []
    count = 0
    for document in given:
        count += 1
        if isinstance(document, Skipped):
            unread.append(document)
            continue
        place = next((place for place, reader in enumerate(readers) if reader.take(document)), None)
        if place is not None:
            taken[place] += 1
    return taken, unread, count


def _which(origin: str, count: int, taken: dict[str, int], unread: list[Skipped]) -> str:
    if taken:
        there = ", ".join(f"{name} ({number:,} files)" for name, number in taken.items())
        return f"{origin} has more than one format, {there}: name one, as in format={next(iter(taken))!r}"
    if unread:
        first = unread[0]
        return (
            f"{origin} has no charts of a known format; {len(unread):,} of {count:,} files cannot be read, the first "
            f"of them {first.path}: {first.reason}"
        )
    known = ", ".join(_READERS)
    return f"{origin} has no charts of a known format among {count:,} documents of JSON and YAML; known are {known}"
