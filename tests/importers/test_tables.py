"""Tables that people keep themselves, as they save them by hand, and what a query of a database gives."""

from __future__ import annotations

import sqlite3
import zipfile
from pathlib import Path

import pytest

from copilotlab import read_catalogue
from copilotlab.importers import CatalogueError, tables

ROWS = [
    {"id": "7", "name": "Umsätze je Region", "type": "bar", "measures": ["Erlös", "Menge"]},
    {"id": "8", "name": "Orders", "type": "", "measures": []},
]


def found(path: Path) -> list[dict[str, object]]:
    catalogue = read_catalogue(path)
    assert catalogue.format == "table"
    return [
        {"id": row["key"].removeprefix("table:prod:"), "name": row["title"], "type": row["chart_type"], **picked}
        for row in catalogue.frame.to_dicts()
        for picked in [{"measures": row["measures"]}]
    ]


@pytest.mark.parametrize(("delimiter", "name"), [(";", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv"), ("|", "A.CSV")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
def test_a_csv_is_read_however_it_was_saved_with_its_blank_rows(
    tmp_path: Path, delimiter: str, name: str, encoding: str
) -> None:
    lines = [
        ["ID", "Name", "Type", "Metrics"],
        ["7.0", "Umsätze je Region", "bar", "Erlös, Menge"],
        ["8", "Orders", "", ""],
    ]
    blank = [delimiter * 3, "", delimiter * 3, ""]
    (tmp_path / name).write_bytes("\r\n".join([*map(delimiter.join, lines), *blank]).encode(encoding))

    assert found(tmp_path / name) == ROWS


def test_json_lines_are_a_table_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"chart_id": 7.0, "title": "Revenue", "tags": ["a"]}\n\n{"chart_id": 8, "title": 5}\n')

    catalogue = read_catalogue(path, format="table")

    assert catalogue.frame["key"].to_list() == ["table:prod:7", "table:prod:8"]
    assert catalogue.frame["title"].to_list() == ["Revenue", "5"]


def test_a_workbook_is_read_with_its_numbers_as_ids(tmp_path: Path) -> None:
    workbook(tmp_path / "a.xlsx", [["id", "name", "type", "measures"], [7, ROWS[0]["name"], "bar", "Erlös; Menge"],
                                   [8, "Orders", "", ""], ["", "", "", ""]])  # fmt: skip

    assert found(tmp_path / "a.xlsx") == ROWS


def test_a_workbook_that_is_broken_or_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(CatalogueError, match=r"a\.xlsx cannot be read as xlsx: it is not, or no longer, a workbook"):
        read_catalogue(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(CatalogueError, match=r"b\.xlsx cannot be read as xlsx"):
        read_catalogue(tmp_path / "b.xlsx")
    monkeypatch.setattr("copilotlab.charts.files._MOST_UNPACKED", 10)
    workbook(tmp_path / "c.xlsx", [["id", "title"], [1, "x"]])
    with pytest.raises(CatalogueError, match="it unpacks to more than 0 MB"):
        read_catalogue(tmp_path / "c.xlsx")


def test_bad_rows_are_skipped_and_named_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,title,tags\n1,Good,"[""a"", null]"\n,No id,\n1,Good,\n2,Bad list,"[1"\n3,,x\n')

    catalogue = read_catalogue(path)

    assert catalogue.frame["tags"].to_list() == [["a"]]
    assert catalogue.skipped.select("path", "native_id").rows() == [
        ("a.csv:2", ""), ("a.csv:3", "1"), ("a.csv:4", "2"), ("a.csv:5", "3"),
    ]  # fmt: skip
    path.write_text("number,heading\n1,x\n")
    with pytest.raises(CatalogueError, match=r"has no column that is called chart_id or id.*its columns are 'number'"):
        read_catalogue(path)


def test_a_row_of_too_many_fields_stops_no_other_and_columns_that_are_not_read_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "misspelt.csv"
    path.write_text("ID,Name,Chart Type,Descripton,owner\n1,Good,bar,x,y\n2,Bad,bar,x,y,z\n3,Good too,,,\n")

    read_catalogue(path)
    catalogue = read_catalogue(path)

    assert catalogue.frame.select("title", "chart_type").rows() == [("Good", "bar"), ("Good too", "")]
    assert catalogue.skipped.select("path", "native_id").rows() == [("misspelt.csv:2", "")]
    assert "it has 6 fields, the header has 5" in catalogue.skipped["reason"].item()
    assert not catalogue.complete, "which chart that row is, nobody knows"
    (message,) = caplog.messages
    assert "misspelt.csv: not read, since no chart has such a field: 'Descripton', 'owner'; did you mean" in message
    assert message.endswith("did you mean 'description' by 'Descripton'?")


def test_a_query_of_a_database_is_a_catalogue_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE reports (nr INTEGER, heading TEXT)")
        database.executemany("INSERT INTO reports VALUES (?, ?)", [(1, "Revenue 100 %"), (2, "Orders :x")])
    database.close()
    before = path.read_bytes()
    query = "SELECT nr AS id, heading AS title FROM reports WHERE heading LIKE '%e%' OR heading = ':x'"

    catalogue = read_catalogue(f"sqlite:///{path}", query=query, instance="own")

    assert catalogue.frame.select("key", "title").rows() == [
        ("table:own:1", "Revenue 100 %"),
        ("table:own:2", "Orders :x"),
    ]
    with pytest.raises(CatalogueError, match="attempt to write a readonly database; the query was"):
        read_catalogue(f"sqlite:///{path}", query="DELETE FROM reports")
    with pytest.raises(CatalogueError, match="no such table: charts; the query was"):
        read_catalogue(f"sqlite:///{path}", query="SELECT * FROM charts")
    monkeypatch.setattr(tables, "MAX_ROWS", 1)
    with pytest.raises(CatalogueError, match="more than 1 rows: narrow it"):
        read_catalogue(f"sqlite:///{path}", query=query)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mine.db"]


def test_a_wrong_url_or_query_is_said_and_shows_no_password(tmp_path: Path) -> None:
    for url, query, said in [
        (f"sqlite:///{tmp_path}/none.db", "SELECT 1", "there is no such file"),
        ("postgresql://me:secret@nowhere.invalid/x", None, r"query=None; expected the SQL"),
        ("nothing://me:secret@x/y", "SELECT 1", "nothing"),
        (str(tmp_path / "a.csv"), "SELECT 1", "goes with an SQLAlchemy URL"),
    ]:
        with pytest.raises(CatalogueError, match=said) as raised:
            read_catalogue(url, query=query)
        assert "secret" not in str(raised.value)


def workbook(path: Path, rows: list[list[object]]) -> None:
    """Write a workbook with one sheet, as small as there is."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"

    def cell(value: object) -> str:
        number = f"<c><v>{value}</v></c>"
        return number if isinstance(value, int) else f'<c t="inlineStr"><is><t>{value}</t></is></c>'

    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    relationships = f'<Relationships xmlns="{package}/relationships"><Relationship Id="a" Type="{office}'
    sheet = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/>'
        f'<Override PartName="/xl/s.xml" ContentType="{types}.worksheet+xml"/></Types>',
        "_rels/.rels": f'{relationships}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'{relationships}/worksheet" Target="s.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        '<sheet name="Charts" sheetId="1" r:id="a"/></sheets></workbook>',
        "xl/s.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')
