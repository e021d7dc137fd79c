"""What the documents name exists, and imports go the way that docs/architecture.md says."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "copilotlab"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ROOMS = ("charts", "embedding", "store", "monitoring")
NODE_FLOOR = ("details", "answer", "watch", "orders", "snapshot_file", "words", "filters", "fusion", "vocabulary")
TOP = ("lab", "cluster", "studies", "widgets", "service", "cli", "__main__")


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """The code of the package, parsed."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


# --- what a document names --------------------------------------------------------------------------------------------


def names_in(document: Path) -> list[str]:
    """What stands between backticks, without blocks of code."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def paths_in(document: Path) -> list[str]:
    """The files and folders of the project that it names."""
    return [
        name for name in names_in(document) if re.fullmatch(r"(copilotlab|tests|docs|data|notebooks)/[\w./-]*", name)
    ]


@functools.cache
def classes() -> dict[str, tuple[set[str], set[str]]]:
    """Each class of the package: the names in it, and its bases."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                members = {part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef)}
                fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
                members |= {field.id for field in fields if isinstance(field, ast.Name)}
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                found[node.name] = members, bases
    return found


def has_member(owner: str, name: str) -> bool:
    if owner not in classes():
        return False
    members, bases = classes()[owner]
    return name in members or any(has_member(base, name) for base in bases)


@functools.cache
def functions() -> dict[str, set[str]]:
    """The names at the top of each module, by the module's last name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[path.stem].add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found[path.stem] |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    """Whether there is a class, a ``Class.member``, or a ``module.function`` of that name."""
    owner, _, member = name.rpartition(".")
    if not owner:
        return name in classes() or any(name in names for names in functions().values())
    return has_member(owner, member) or member in functions()[owner]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_files_that_a_document_names_exist(document: Path) -> None:
    assert [name for name in paths_in(document) if not (ROOT / name).exists()] == []


def test_the_classes_and_functions_that_the_architecture_names_exist() -> None:
    code = r"[A-Z]\w+(\.\w+)?|[a-z]\w*\.[a-z_]\w*|_?[a-z]+_\w+|_?[A-Z_]+"
    prose = {"ends_with_its_holder"}  # an attribute, with its class in the sentence before
    named = [name for name in names_in(ARCHITECTURE) if re.fullmatch(code, name) and name not in prose]
    assert len(named) > 50
    assert [name for name in named if not exists(name)] == []


def test_what_does_not_exist_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`copilotlab/replica.py`, `Replica.rejoin_all`, `Node.search`\n```\n`tests/none.py`\n```\n")
    assert paths_in(page) == ["copilotlab/replica.py"]
    assert not (ROOT / paths_in(page)[0]).exists()
    assert [exists(name) for name in ("Replica.rejoin_all", "Replicas", "events.recode", "no_such_function")] == [
        False
    ] * 4
    assert all(exists(name) for name in ("Node.search", "FencedLease.keep", "Policy.fenced", "events.decode", "FAULTS"))


# --- who imports whom -------------------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    """``protocol.link`` for copilotlab/protocol/link.py, ``charts`` for that package's ``__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module of the package imports of it, itself: also in a function, and not for types alone."""
    found: dict[str, set[str]] = {}
    for path in trees():
        tree = WithoutTypes().visit(ast.parse(path.read_text()))  # a tree of its own, since it is changed
        found[module_of(path)] = {name for node in ast.walk(tree) for name in imported(node)}
    return found


class WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "an import that does not name the package"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            if full.startswith("copilotlab."):
                is_module = any((ROOT / full.replace(".", "/")).with_suffix(end).exists() for end in (".py", ""))
                yield (full if is_module else str(node.module)).removeprefix("copilotlab").removeprefix(".")
    elif isinstance(node, ast.Import):
        yield from (alias.name[11:] for alias in node.names if alias.name.startswith("copilotlab."))


def within(module: str, *rooms: str) -> bool:
    return module.partition(".")[0] in rooms


def who_knows(*rooms: str) -> set[str]:
    """The modules that import one of these rooms, and are not in it."""
    return {
        module
        for module, known in imports().items()
        if any(within(name, *rooms) and not within(module, name.partition(".")[0]) for name in known)
    }


def test_nothing_below_knows_what_is_on_top() -> None:
    assert {module for module in who_knows(*TOP) if not within(module, *TOP)} == set()
    assert {module for module in who_knows("widgets") if not within(module, "widgets")} == {"cluster", "lab.lab"}
    assert {module for module in who_knows("studies", "cli")} <= {"studies", "cli", "__main__"}


def test_the_protocol_does_not_know_the_node() -> None:
    within_the_node = {"node", *NODE_FLOOR}
    assert {module for module in who_knows("node", *NODE_FLOOR) if not within(module, *TOP)} <= within_the_node


def test_who_watches_a_cluster_knows_no_node() -> None:
    above = {"node", *NODE_FLOOR}
    assert {name for module in ("cluster", "picture") for name in imports()[module]} & above == set()
    assert {module for module in who_knows("cluster", "picture") if not within(module, *TOP)} == set()


def test_the_four_rooms_know_neither_the_protocol_nor_each_other() -> None:
    assert {module for module in who_knows("protocol") if within(module, *ROOMS)} == set()
    assert {module for module in who_knows(*ROOMS) if within(module, *ROOMS)} == set()


def test_the_importers_know_the_charts_and_the_ground_alone() -> None:
    above = ("importers", "protocol", "node", *NODE_FLOOR, *TOP)
    known = {name for module in imports() if within(module, "importers") for name in imports()[module]}
    assert "charts.chart" in known
    assert {name for name in known if within(name, *ROOMS[1:], *above) and not within(name, "importers")} == set()
    assert {module for module in who_knows("importers") if not within(module, *TOP)} == set()


def test_the_ground_knows_nothing_of_the_house() -> None:
    ground = {Path(name).stem for name in paths_in(ARCHITECTURE) if re.fullmatch(r"copilotlab/\w+\.py", name)}
    ground -= {"node", *NODE_FLOOR, "cluster", "picture", "cli"}
    assert len(ground) == 9
    assert {name for module in ground for name in imports()[module]} <= {"reasons"}, (
        "which puts what was given into words"
    )


def test_every_module_stands_on_a_floor() -> None:
    named = {module_of(ROOT / name) for name in paths_in(ARCHITECTURE) if name.startswith("copilotlab/")}
    assert {module.partition(".")[0] for module in imports()} - {"", "__main__"} <= {n.partition(".")[0] for n in named}


def test_each_room_of_the_protocol_imports_only_rooms_above_it() -> None:
    rows = re.findall(r"^\| `copilotlab/(protocol/\w+)\.py`", ARCHITECTURE.read_text(), flags=re.MULTILINE)
    order = [row.replace("/", ".") for row in rows]
    assert set(order) == {module for module in imports() if module.startswith("protocol.")} - {"protocol.scripts"}
    for place, room in enumerate(order):
        assert {name for name in imports()[room] if within(name, "protocol")} <= set(order[:place])


def test_the_view_asks_nobody() -> None:
    assert imports()["protocol.view"] == set()  # no carrier, coordinator, link or clock


# --- what is written and read in one place ----------------------------------------------------------------------------


def uses(attribute: str, *contexts: type[ast.expr_context]) -> Iterator[tuple[str, str]]:
    """The modules, and what stands before the dot, where an attribute is used; also in ``del`` and ``+=``."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, contexts):
                yield module_of(path), ast.unparse(node.value)


@pytest.mark.parametrize("attribute", ["_flags", "_suspects", "_accepted", "_awaited_revision"])
def test_what_a_node_knows_of_the_cluster_changes_in_the_view_alone(attribute: str) -> None:
    assert set(uses(attribute, ast.Store, ast.Del, ast.Load)) == {("protocol.view", "self")}


def test_what_kind_of_lease_there_is_is_asked_in_its_room() -> None:
    core = [module for name in ("fenced", "renew_lease") for module, of in uses(name, ast.Load) if "policy" in of]
    assert {module for module in core if not within(module, *TOP)} == {"protocol.lease", "protocol.coordinator"}
    coordinator = (PACKAGE / "protocol" / "coordinator.py").read_text()
    assert re.findall(r"(?m)^.*(?:fenced|renew_lease)\b.*$", coordinator) == re.findall(
        r"(?m)^\s+scripted=.*$", coordinator
    )
