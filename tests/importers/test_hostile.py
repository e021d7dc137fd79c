"""What is too large, too deep, broken or after files of others is refused or skipped in words; the rest goes on."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import exports
import pytest

from copilotlab import read_catalogue
from copilotlab.importers import CatalogueError, documents

GOOD = exports.LIGHTDASH["charts/orders.yml"]


def reasons(path: Path) -> dict[str, str]:
    catalogue = read_catalogue(path, format="lightdash")
    assert len(catalogue) == 1, "the good chart is there"
    return dict(catalogue.skipped.select("path", "reason").iter_rows())


def test_a_bad_file_stops_none_of_the_others(folder):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    found = reasons(
        folder(
            {
                "bomb.yml": bomb,
                "circle.yml": "a: &a [*a]\n",
                "deep.yml": "[" * 5_000,
                "deep.json": "[" * 100_000,
                "broken.json": '{"a": ',
                "broken.yml": "a: [\n",
                "number.json": "1" * 5_000,
                "evil.yml": "a: !!python/object/apply:os.system [exit 1]\nb: !mine {c: d}\n",
                "good.yml": GOOD,
                "lines.ndjson": '{"a": 1}\n{"a": \n[]\n',
                "empty.json": "",
                "empty.yml": "",
            }
        )
    )

    assert found.pop("bomb.yml") == (
        "it cannot be read as YAML: its aliases stand for more than 2,000,000 values, as in a YAML bomb"
    )
    assert found.pop("circle.yml").endswith("an alias stands inside what it is the alias of")
    assert "nest" in found.pop("deep.yml")
    assert found.pop("deep.json") == "it cannot be read: it is nested too deeply"
    assert found.pop("lines.ndjson:2").startswith("the line cannot be read as JSON")
    assert set(found) == {"broken.json", "broken.yml", "number.json", "empty.json"}


def test_aliases_that_stand_for_little_are_read(folder):
    (tags,) = (
        read_catalogue(folder({"a.yml": f"shared: &tags\n  spaceSlug: finance\n<<: *tags\n{_flush(GOOD)}"}))
        .frame["tags"]
        .to_list()
    )

    assert tags == ["finance"]


def _flush(yaml: str) -> str:
    return "\n".join(line.strip() if not line.startswith(" " * 10) else line[8:] for line in yaml.splitlines())


def test_a_file_of_500_mb_is_refused_before_it_is_read(folder, tmp_path: Path):
    root = folder({"good.yml": GOOD})
    for name in ("large.json", "large.csv"):
        with (root / name).open("wb") as file:
            file.truncate(500 * 2**20)  # takes no room on disk

    assert reasons(root) == {"large.json": "has 500 MB: expected at most 256 MB"}
    for name in ("large.json", "large.csv"):
        with pytest.raises(CatalogueError, match=rf"{name} has 500 MB: expected at most 256"):
            read_catalogue(root / name)


def test_more_files_and_bytes_than_are_read_are_refused(folder, monkeypatch: pytest.MonkeyPatch):
    root = folder({f"{number}.yml": GOOD for number in range(4)})

    monkeypatch.setattr(documents, "MAX_FILES", 3)
    with pytest.raises(CatalogueError, match="has more than 3 files: read its parts"):
        read_catalogue(root)
    monkeypatch.setattr(documents, "MAX_FILES", 10)
    monkeypatch.setattr(documents, "MAX_TOTAL", 1_000)
    with pytest.raises(CatalogueError, match="MB unpacked: expected at most"):
        read_catalogue(root)


@pytest.mark.parametrize("name", ["../evil.yml", "a/../../evil.yml", "/etc/evil.yml", "..\\evil.yml", "C:\\evil.yml"])
def test_a_zip_that_names_files_outside_itself_is_refused(tmp_path: Path, name: str):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("good.yml", GOOD)
        archive.writestr(name, GOOD)

    with pytest.raises(CatalogueError, match="names a file outside itself"):
        read_catalogue(tmp_path / "export.zip")


def test_a_zip_bomb_is_refused_by_what_it_says_and_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "MAX_TOTAL", 2**20)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.json", b"[" + b" " * 2**21 + b"]")
    with pytest.raises(CatalogueError, match="has 2 MB unpacked: expected at most 1 MB"):
        read_catalogue(path)

    said = path.read_bytes().replace(struct.pack("<I", 2**21 + 2), struct.pack("<I", 100))  # it lies about its size
    path.write_bytes(said)
    with pytest.raises(CatalogueError, match="cannot be read as a ZIP"):
        read_catalogue(path)


def test_a_broken_or_encrypted_zip_is_refused(tmp_path: Path):
    path = tmp_path / "export.zip"
    path.write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(CatalogueError, match="is no ZIP, or a broken one"):
        read_catalogue(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.yml", GOOD)
        archive.filelist[0].flag_bits |= 1
    with pytest.raises(CatalogueError, match="is encrypted: unpack it"):
        read_catalogue(path)


def test_what_is_not_there_or_has_no_charts_is_said(folder, tmp_path: Path):
    with pytest.raises(CatalogueError, match="nowhere: there is no such file or folder"):
        read_catalogue(tmp_path / "nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(CatalogueError, match=r"expected a folder, a \.zip, or a name that ends in"):
        read_catalogue(tmp_path / "a.txt")
    with pytest.raises(CatalogueError, match=r"no charts of a known format among 1 documents.*superset, metabase"):
        read_catalogue(folder({"package.json": {"name": "x"}}))
    with pytest.raises(
        CatalogueError, match=r"1 of 1 files cannot be read, the first of them a\.json: it cannot be read"
    ):
        read_catalogue(folder({"a.json": "{", "package.json": {}}) / "a.json")
    with pytest.raises(CatalogueError, match="format='tableau': expected one of superset"):
        read_catalogue(tmp_path, format="tableau")


def test_links_out_of_the_folder_and_hidden_folders_are_not_followed(folder, tmp_path: Path):
    root = folder({"good.yml": GOOD, ".git/other.yml": GOOD.replace("orders-by-status", "hidden")})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.yml").write_text(GOOD.replace("orders-by-status", "outside"))
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "gone.yml").symlink_to(tmp_path / "nowhere")

    assert len(read_catalogue(root)) == 1


def test_values_of_the_wrong_kind_where_charts_have_theirs_are_skipped_or_empty(folder):
    broken = {
        "panels": [
            7,
            None,
            "x",
            [],
            {},
            {"id": True, "type": [], "title": {}},
            {"id": 3, "targets": 5, "title": "Good"},
        ],
        "schemaVersion": 39,
        "uid": "u" * 300,
        "title": ["x"],
        "tags": {"a": 1},
        "templating": [],
    }
    fine = {**broken, "uid": "fine"}
    catalogue = read_catalogue(
        folder({"a.json": broken, "b.json": fine, "c.json": json.dumps({**fine, "uid": "\ud800"})})
    )

    assert catalogue.frame["title"].to_list() == ["Good"]
    assert set(catalogue.reasons()) == {
        "it has no id",
        "its id has more than 200 characters, or some that no database keeps",
    }
