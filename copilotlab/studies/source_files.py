"""Which files of copilotlab a module imports: a change of one of them may change the module's results.

The files are read, not imported. An import statement counts wherever it stands, within a function too, unless only a
type checker sees it (``if TYPE_CHECKING:``). To import a module is to import the packages that it is in.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import copilotlab

PACKAGE = Path(copilotlab.__file__).parent
ONLY_SHOWS = "copilotlab.widgets"
"""No study shows a panel; but `Lab.panel` imports them."""

_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # of a statement: lists of other statements
_ONLY_TYPES = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
_RESOURCES = re.compile(rb"""\bfiles\(\s*["']([\w.]+)["']""")


def source_digest(start: Path, package: Path = PACKAGE) -> str:
    """Return a digest, 32 hex digits, of the paths and contents of the files of `source_files`.

    Raises what `source_files` raises. The first call takes some 0.1 s.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in source_files(start, package):
        place = path.relative_to(package).as_posix() if path.is_relative_to(package) else path.name
        for part in (place.encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def source_files(start: Path, package: Path = PACKAGE) -> list[Path]:
    """List ``start`` and every file of the package that it imports, directly or through others; sorted.

    start: a Python file, of the package or not. package: the folder of the package copilotlab.
    The other files beside the ``__init__.py`` of an imported package, such as scripts in Lua, count too. So does a
    package that is named in a call ``files("copilotlab...")`` of `importlib.resources`.

    Raises OSError for a file that cannot be read, SyntaxError for one that is no Python.
    """
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            if path.suffix == ".py":
                folder = path.relative_to(package.parent).parent.parts if path.is_relative_to(package) else ()
                names = _imports(path.read_bytes(), folder, package.name)
                waiting += [file for name in names for file in _files(name, package)]
    return sorted(found)


def _files(name: str, package: Path) -> Iterator[Path]:
    """Find the files of a dotted name: those of its packages, and its own where it is a module."""
    place = package.parent
    for part in name.split("."):
        place /= part
        if (place / "__init__.py").is_file():
            yield from (path for path in place.iterdir() if path.is_file() and path.suffix != ".py")
            yield place / "__init__.py"
        elif place.with_name(f"{part}.py").is_file():
            yield place.with_name(f"{part}.py")


@functools.cache
def _imports(content: bytes, folder: tuple[str, ...], package: str) -> frozenset[str]:
    """Find the dotted names of the package that a file imports: modules, and names in modules (``module.name``)."""
    imported = {name for statement in _statements(ast.parse(content)) for name in _names(statement, folder)}
    imported |= {name.decode() for name in _RESOURCES.findall(content)}
    return frozenset(name for name in imported if _within(name, package) and not _within(name, ONLY_SHOWS))


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Find the import statements in a piece of code. Expressions hold none, and are passed over to save time."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    for block in _BLOCKS:
        if block == "body" and isinstance(node, ast.If) and ast.unparse(node.test) in _ONLY_TYPES:
            continue
        for part in getattr(node, block, ()):
            yield from _statements(part)


def _names(statement: ast.Import | ast.ImportFrom, folder: tuple[str, ...]) -> Iterator[str]:
    """Return the full names that a statement imports. folder: the package that its file is in, for relative imports."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    above = folder[: len(folder) + 1 - statement.level] if statement.level else ()
    origin = (*above, statement.module) if statement.module else above
    yield from (".".join((*origin, alias.name)) for alias in statement.names)
