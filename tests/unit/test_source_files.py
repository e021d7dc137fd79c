"""Which files decide what a study finds: all that it imports, wherever they stand, and nothing else."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import copilotlab
from copilotlab.studies.source_files import PACKAGE, source_digest, source_files

STUDIES_OF_NODES = ("ablation", "recovery", "interrupted", "cluster")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to change."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "copilotlab", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes a package called copilotlab of these files, and returns its folder."""

    def write(files: dict[str, str]) -> Path:
        for name, content in {"__init__.py": "", **files}.items():
            path = tmp_path / "copilotlab" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "copilotlab"

    return write


def digest(package: Path, study: str = "ablation") -> str:
    return source_digest(package / "studies" / f"{study}.py", package)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("\n")


def names(package: Path, start: str) -> list[str]:
    return [path.relative_to(package).as_posix() for path in source_files(package / start, package)]


@pytest.mark.parametrize("study", STUDIES_OF_NODES)
def test_a_study_of_nodes_is_decided_by_the_protocol_its_scripts_and_the_lab(study: str) -> None:
    known = names(PACKAGE, f"studies/{study}.py")
    for part in ("protocol/*.py", "protocol/scripts/*.lua", "store/*.py", "charts/*.py"):
        files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob(part)]
        assert files, part
        assert set(files) <= set(known), part
    assert {
        "node.py",
        "clock.py",
        "monitoring/journal.py",
        "monitoring/metrics.py",
        "lab/lab.py",
        f"studies/{study}.py",
    } <= set(known)


def test_a_copy_elsewhere_has_the_same_digest(package: Path) -> None:
    assert digest(package) == digest(PACKAGE)


def test_a_file_that_moves_changes_the_digest(package: Path) -> None:
    seen = [digest(package)]
    for moved in ("protocol/replica.py", "protocol/scripts/take_lease.lua", "store/store.py", "node.py"):
        file = package / moved
        file.rename(file.with_stem("elsewhere"))
        seen.append(digest(package))

    assert len(set(seen)) == len(seen)


def test_a_file_that_moves_with_its_imports_still_counts(package: Path) -> None:
    (package / "protocol" / "replica.py").rename(package / "elsewhere.py")
    for path in package.rglob("*.py"):
        content = path.read_text()
        if "copilotlab.protocol.replica" in content:
            path.write_text(content.replace("copilotlab.protocol.replica", "copilotlab.elsewhere"))
    assert "elsewhere.py" in names(package, "studies/ablation.py")
    before = digest(package)
    append(package / "elsewhere.py")

    assert digest(package) != before


def test_an_imported_file_that_changes_changes_the_digest(package: Path) -> None:
    seen = [digest(package)]
    for changed in ("clock.py", "protocol/scripts/beat.lua", "lab/simulated_redis.py"):
        append(package / changed)
        seen.append(digest(package))

    assert len(set(seen)) == len(seen)


def test_a_file_that_no_study_of_nodes_imports_does_not_count(package: Path) -> None:
    studies = ("ablation", "recovery")
    before = [digest(package, study) for study in studies]
    for changed in ("cli.py", "widgets/lab_panel.py", "widgets/panel.css", "lab/demo.py", "studies/models.py"):
        append(package / changed)

    assert [digest(package, study) for study in studies] == before


@pytest.mark.parametrize(
    "statement",
    [
        "import copilotlab.a.b",
        "import copilotlab.a.b as c",
        "from copilotlab.a import b",
        "from copilotlab.a.b import name",
        "from copilotlab.a.b import *",
        "from .a import b",
        "from .a.b import name",
        "def f():\n    if True:\n        from copilotlab.a import b",
        "class C:\n    async def f(self):\n        async with x:\n            import copilotlab.a.b",
        "try:\n    pass\nexcept OSError:\n    import copilotlab.a.b",
        "match 1:\n    case 1:\n        import copilotlab.a.b",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import copilotlab.a.b",
        "for x in y:\n    pass\nelse:\n    import copilotlab.a.b",
    ],
)
def test_an_import_counts_however_and_wherever_it_is_written(
    written: Callable[[dict[str, str]], Path], statement: str
) -> None:
    package = written({"study.py": statement, "a/__init__.py": "", "a/b.py": "", "a/other.py": ""})
    assert names(package, "study.py") == ["__init__.py", "a/__init__.py", "a/b.py", "study.py"]


def test_a_relative_import_counts_from_its_own_folder(written: Callable[[dict[str, str]], Path]) -> None:
    files = {"a/__init__.py": "from . import b", "a/b.py": "from .. import c", "c.py": "", "b.py": ""}
    package = written({"study.py": "import copilotlab.a", **files})
    assert names(package, "study.py") == ["__init__.py", "a/__init__.py", "a/b.py", "c.py", "study.py"]


def test_what_only_a_type_checker_imports_does_not_count(written: Callable[[dict[str, str]], Path]) -> None:
    package = written({"study.py": "if TYPE_CHECKING:\n    import copilotlab.a", "a.py": ""})
    assert names(package, "study.py") == ["study.py"]


def test_files_beside_an_imported_package_count_and_those_of_a_package_that_is_read(
    written: Callable[[dict[str, str]], Path],
) -> None:
    packages = {f"{name}/__init__.py": "" for name in "ast"}
    data = {"a/words.txt": "", "s/step.lua": "", "t/words.txt": ""}
    package = written({"study.py": 'import copilotlab.a\nfiles("copilotlab.s")', **packages, **data})
    assert names(package, "study.py") == [
        "__init__.py", "a/__init__.py", "a/words.txt", "s/__init__.py", "s/step.lua", "study.py",
    ]  # fmt: skip


def test_modules_that_import_each_other_are_found_once(written: Callable[[dict[str, str]], Path]) -> None:
    package = written({"a.py": "import copilotlab.b", "b.py": "import copilotlab.a"})
    assert names(package, "a.py") == ["__init__.py", "a.py", "b.py"]


def test_a_file_of_somebody_elses_counts_with_what_it_imports(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from copilotlab.clock import Clock")
    assert set(source_files(mine)) >= {mine, PACKAGE / "clock.py"}
    assert PACKAGE / "node.py" not in source_files(mine)


def test_no_module_takes_from_the_package_itself_what_it_loads_when_it_is_asked_for() -> None:
    """Those names come by `copilotlab.__getattr__`, which no import statement tells of."""
    taken = [
        (path.name, alias.name)
        for path in PACKAGE.rglob("*.py")
        for statement in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(statement, ast.ImportFrom) and statement.module == "copilotlab"
        for alias in statement.names
        if alias.name in copilotlab.__all__
    ]
    assert taken == []
