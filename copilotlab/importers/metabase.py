"""Metabase: cards, dashboards and collections as its API answers; native id: the card's entity_id, else its id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from copilotlab.importers.draft import Document, Draft, Skipped
from copilotlab.importers.server import Refused, Server
from copilotlab.importers.tree import at, dicts, fields, text, unpacked
from copilotlab.reasons import reason

TRASHED = "it is in the trash"
_PAGE = 500  # dashboards
_MOST_PAGES = 1_000
_NUMBERS = ("type/Integer", "type/BigInteger", "type/Float", "type/Decimal", "type/Number")


def of_server(server: Server) -> Iterator[Document | Skipped]:
    """Ask a server for its cards, and for what gives them their tags and sources: these may be refused."""
    cards = server.get("/api/card")
    if not isinstance(cards, list):
        raise Refused(f"{server.url}/api/card answers with {type(cards).__name__}, not with a list of cards")
    for card in dicts(cards):
        yield Document(f"/api/card/{text(card.get('id'))}", card)
    del cards
    paths = ["/api/collection", "/api/table"]
    try:
        paths += _dashboards(server)
    except Refused as error:
        yield Skipped("/api/search", "", reason(error))
    for path in paths:
        try:
            yield Document(path, server.get(path))
        except Refused as error:
            yield Skipped(path, "", reason(error))


def _dashboards(server: Server) -> Iterator[str]:
    """Give the paths of the dashboards, page by page."""
    for number in range(_MOST_PAGES):
        found = server.get("/api/search", models="dashboard", limit=_PAGE, offset=number * _PAGE)
        page = dicts(at(found, "data"))
        yield from (f"/api/dashboard/{id_}" for each in page if (id_ := text(each.get("id"))).isdigit())
        if len(page) < _PAGE:
            return


class Metabase:
    """Reads what the API of Metabase answers."""

    format = "metabase"

    def __init__(self, base_url: str = "") -> None:
        self._base_url = base_url.rstrip("/")
        self._cards: dict[tuple[str, str], dict[str, Any]] = {}
        self._drafts: list[tuple[Draft | Skipped, str, str]] = []  # with the card's id and its collection's
        self._collections: dict[str, str] = {}
        self._tables: dict[str, str] = {}
        self._dashboards: defaultdict[str, list[str]] = defaultdict(list)

    def take(self, document: Document) -> bool:
        content = document.content
        each = content.get("data") if isinstance(content, dict) and isinstance(content.get("data"), list) else content
        taken = [self._take_one(item, document.path) for item in dicts(each)]
        return any(taken)

    def _take_one(self, item: dict[str, Any], path: str) -> bool:
        if "dataset_query" in item and "name" in item:
            self._take_card(item, path)
        elif isinstance(item.get("dashcards"), list) or isinstance(item.get("ordered_cards"), list):
            for tile in dicts(item.get("dashcards")) or dicts(item.get("ordered_cards")):
                for card in (tile.get("card"), *dicts(tile.get("series"))):
                    if number := text(at(card, "id")) or text(tile.get("card_id")):
                        self._dashboards[number].append(text(item.get("name")))
        elif "name" in item and ("effective_location" in item or "is_personal" in item):
            self._collections[text(item.get("id"))] = text(item["name"])
        elif isinstance(item.get("tables"), list) and "engine" in item:
            self._take_tables(item.get("tables"))
        elif "db_id" in item and "schema" in item and "name" in item:
            self._take_tables([item])
        elif text(item.get("model")) not in ("card", "dashboard", "dataset", "metric"):  # a page of a collection
            return False
        return True

    def _take_tables(self, tables: object) -> None:
        for table in dicts(tables):
            self._tables[text(table.get("id"))] = text(table.get("display_name")) or text(table.get("name"))

    def _take_card(self, card: dict[str, Any], path: str) -> None:
        number = text(card.get("id"))
        native_id = text(card.get("entity_id")).strip() or number
        if card.get("archived") is True:
            self._drafts.append((Skipped(path, native_id, TRASHED, no_chart=True), "", ""))
            return
        draft = Draft(
            native_id=native_id,
            path=path,
            title=text(card.get("name")),
            description=text(card.get("description")),
            chart_type=text(card.get("display")),
            source=text(at(card, "table", "display_name")),
            tags=[text(at(card, "collection", "name"))],
            url=f"{self._base_url}/question/{number}" if self._base_url and number else "",
        )
        grouped = _grouped_columns(card)
        for column in dicts(unpacked(card.get("result_metadata"))):
            name = text(column.get("display_name")) or text(column.get("name"))
            if name == "?column?":  # PostgreSQL's name for what has none
                continue
            (draft.measures if _is_measure(column, grouped) else draft.dimensions).append(name)
        if not draft.source:
            draft.source = f"table {text(card.get('table_id'))}" if card.get("table_id") else ""
        self._drafts.append((draft, number, text(card.get("collection_id"))))

    def charts(self) -> Iterable[Draft | Skipped]:
        for draft, number, collection in self._drafts:
            if isinstance(draft, Draft):
                draft.dashboards += self._dashboards[number]
                draft.tags.append(self._collections.get(collection, ""))
                if draft.source.startswith("table "):
                    draft.source = self._tables.get(draft.source.removeprefix("table "), "")
            yield draft


def _grouped_columns(card: dict[str, Any]) -> bool:
    """Return whether the card's query aggregates: then a column that is no breakout is a measure."""
    query = fields(card.get("dataset_query"))
    stages = dicts(query.get("stages")) or dicts(query.get("query"))
    return any(stage.get("aggregation") for stage in stages)


def _is_measure(column: dict[str, Any], aggregated: bool) -> bool:
    source = text(column.get("source")) or text(column.get("lib/source"))
    if "aggregation" in source or text(at(column, "field_ref")) == "aggregation":
        return True
    reference = column.get("field_ref")
    if isinstance(reference, list) and reference and reference[0] == "aggregation":
        return True
    if text(column.get("semantic_type")) == "type/Quantity" and text(column.get("id")) == "":
        return True  # what count(*) of a native query is
    return aggregated and source == "" and text(column.get("id")) == "" and text(column.get("base_type")) in _NUMBERS
