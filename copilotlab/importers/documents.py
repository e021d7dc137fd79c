"""Files, folders and ZIPs of JSON and YAML, read with a bound on everything: they come from elsewhere."""

from __future__ import annotations

import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from copilotlab.charts.files import decoded
from copilotlab.importers.draft import CatalogueError, Document, Skipped
from copilotlab.reasons import reason

MAX_FILE = 256 * 2**20  # bytes of one file; a manifest of dbt is the largest that is usual
MAX_YAML = 16 * 2**20  # bytes; YAML is read a hundred times more slowly than JSON
MAX_TOTAL = 2 * 2**30  # bytes of all files of a folder or ZIP, unpacked
MAX_FILES = 200_000
MAX_YAML_NODES = 2_000_000  # in one file, each alias counted as what it stands for
_LINES = 1_000  # of ndjson that make one document

_JSON = (".json",)
_NDJSON = (".ndjson", ".jsonl")
_YAML = (".yaml", ".yml", ".dashboard.lookml")
ENDINGS = (*_JSON, *_NDJSON, *_YAML)
_MEGABYTE = 2**20

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # makes strings of everything: no constructor is run
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)


def documents(path: Path) -> Iterator[Document | Skipped]:
    """Read the JSON and YAML of a file, folder or ZIP, file by file in the order of their names.

    A file that cannot be read, or is too large, is skipped with the reason; beside others, it stops none of them.

    Raises CatalogueError where there is no such path, where it is larger in all than is read, and for a ZIP that is
    broken, encrypted or names files outside itself.
    """
    if path.is_dir():
        yield from _folder(path)
    elif not path.is_file():
        raise CatalogueError(f"{path}: there is no such file or folder")
    elif zipfile.is_zipfile(path):
        yield from _zip(path)
    else:
        _check_ending(path)
        if path.stat().st_size > MAX_FILE:
            raise CatalogueError(f"{path} {_too_large(path.stat().st_size, MAX_FILE)}")
        yield from parsed(path.name, path.read_bytes())


def _check_ending(path: Path) -> None:
    if path.suffix.lower() == ".zip":
        raise CatalogueError(f"{path} is no ZIP, or a broken one: export it again")
    if not path.name.lower().endswith(ENDINGS):
        raise CatalogueError(f"{path}: expected a folder, a .zip, or a name that ends in {', '.join(ENDINGS)}")


def _folder(root: Path) -> Iterator[Document | Skipped]:
    total = count = 0
    for folder, folders, names in os.walk(root):  # does not follow links to folders
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.lower().endswith(ENDINGS) or not path.is_file():
                continue
            origin = path.relative_to(root).as_posix()
            try:
                size = path.stat().st_size
                if size > MAX_FILE:
                    yield Skipped(origin, "", _too_large(size, MAX_FILE), may_hold=True)
                    continue
                data = path.read_bytes()
            except OSError as error:
                yield Skipped(origin, "", f"it cannot be read: {reason(error)}", may_hold=True)
                continue
            count, total = count + 1, total + size
            _check_total(str(root), count, total)
            yield from parsed(origin, data)


def _zip(path: Path) -> Iterator[Document | Skipped]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(path, members)
            for member in sorted(members, key=lambda member: member.filename):
                name = member.filename
                if not name.lower().endswith(ENDINGS) or PurePosixPath(name).name.startswith("."):
                    continue
                if member.file_size > MAX_FILE:
                    yield Skipped(name, "", _too_large(member.file_size, MAX_FILE), may_hold=True)
                    continue
                yield from parsed(name, archive.read(member))  # reads no more than file_size says
    except _BROKEN_ZIP as error:
        raise CatalogueError(f"{path} cannot be read as a ZIP: {reason(error)}") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = member.filename
        if ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\")) or ":" in name[:2]:
            raise CatalogueError(f"{path} names a file outside itself, {name[:200]!r}: an export of a tool never does")
        if member.flag_bits & 1:
            raise CatalogueError(f"{path} is encrypted: unpack it, and read the folder")
    _check_total(str(path), len(members), sum(member.file_size for member in members))


def _check_total(origin: str, count: int, total: int) -> None:
    if count > MAX_FILES:
        raise CatalogueError(f"{origin} has more than {MAX_FILES:,} files: read its parts one by one")
    if total > MAX_TOTAL:
        raise CatalogueError(
            f"{origin} has {total / _MEGABYTE:,.0f} MB unpacked: expected at most {MAX_TOTAL / _MEGABYTE:,.0f} MB; "
            "read its parts one by one"
        )


def _too_large(size: int, most: int) -> str:
    return f"has {size / _MEGABYTE:,.0f} MB: expected at most {most / _MEGABYTE:,.0f} MB"


def parsed(origin: str, data: bytes) -> Iterator[Document | Skipped]:
    """Read the documents of one file, by what its name ends in."""
    name = origin.lower()
    try:
        words = decoded(data, origin)
        if name.endswith(_YAML):
            if len(data) > MAX_YAML:
                yield Skipped(origin, "", _too_large(len(data), MAX_YAML), may_hold=True)
                return
            for content in _yaml(words):
                yield Document(origin, content)
        elif name.endswith(_NDJSON):
            yield from _ndjson(origin, words)
        else:
            try:
                yield Document(origin, json.loads(words))
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":
                    raise
                yield from _ndjson(origin, words)  # one object after the other, in a file that is named .json
    except RecursionError:
        yield Skipped(origin, "", "it cannot be read: it is nested too deeply", may_hold=True)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        yield Skipped(origin, "", f"it cannot be read as YAML: {line}{error.problem}", may_hold=True)
    except (ValueError, yaml.YAMLError) as error:
        kind = "YAML" if name.endswith(_YAML) else "JSON"
        yield Skipped(origin, "", f"it cannot be read as {kind}: {reason(error)}", may_hold=True)


def _lines(words: str) -> Iterator[str]:
    """Give the lines one by one: a list of them, or a file in memory, would take the room again."""
    start = 0
    while start < len(words):
        end = words.find("\n", start)
        end = len(words) if end < 0 else end
        yield words[start:end]
        start = end + 1


def _ndjson(origin: str, words: str) -> Iterator[Document | Skipped]:
    batch: list[Any] = []
    for number, line in enumerate(_lines(words), start=1):
        if not line.strip():
            continue
        try:
            batch.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            yield Skipped(f"{origin}:{number}", "", f"the line cannot be read as JSON: {reason(error)}", may_hold=True)
        if len(batch) == _LINES:
            yield Document(origin, batch)
            batch = []
    if batch:
        yield Document(origin, batch)


def _yaml(words: str) -> Iterator[Any]:
    """Read YAML into dicts, lists, strings and None.

    All else stays as it was typed: a title ``Yes`` is no truth, ``12:30`` no number, ``2024-13-45`` no date. A tag of
    somebody's own is left off, so it can make no object.
    """
    loader = _Loader(words)
    try:
        while loader.check_node():
            yield _plain(loader.get_node(), {})[0]
    finally:
        loader.dispose()


def _plain(node: yaml.Node, known: dict[yaml.Node, tuple[Any, int] | None]) -> tuple[Any, int]:
    """Return what a node says, and how many nodes it stands for once aliases are written out.

    known: what was read already; None of those in which we are.
    """
    if isinstance(node, yaml.ScalarNode):
        is_null = node.tag == "tag:yaml.org,2002:null" or (
            not node.style and node.value in ("", "~", "null", "Null", "NULL")
        )
        return (None if is_null else node.value), 1
    if node in known:
        done = known[node]
        if done is None:
            raise ValueError("an alias stands inside what it is the alias of")
        return done
    known[node] = None
    size = 1
    value: Any
    if isinstance(node, yaml.SequenceNode):
        value = []
        for item in node.value:
            each, more = _plain(item, known)
            value.append(each)
            size = _grown(size, more)
    else:
        value = {}
        merged: list[Any] = []
        for key, item in node.value:
            each, more = _plain(item, known)
            size = _grown(size, more)
            if isinstance(key, yaml.ScalarNode):
                if key.value == "<<" and not key.style:
                    merged += each if isinstance(each, list) else [each]
                else:
                    value[key.value] = each
        for base in merged:
            if isinstance(base, dict):
                value = {**base, **value}
    known[node] = value, size
    return value, size


def _grown(size: int, more: int) -> int:
    if size + more > MAX_YAML_NODES:
        raise ValueError(f"its aliases stand for more than {MAX_YAML_NODES:,} values, as in a YAML bomb")
    return size + more
