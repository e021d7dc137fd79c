"""What the pages show is true: their code runs from top to bottom and prints what stands below it."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
CURL = ROOT / "docs" / "how-to" / "ask-over-http.md"  # its calls are made in tests/service/test_curl.py
RUN = [ROOT / "docs" / "tutorial.md", *sorted(set((ROOT / "docs" / "how-to").glob("*.md")) - {CURL})]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """The blocks of code and of what it prints: language and text, with empty lines before it for the line's number."""
    return [(found[1], "\n" * page.count("\n", 0, found.start(2)) + found[2]) for found in BLOCK.finditer(page)]


def run(page: Path) -> int:
    """Run the code of a page, and compare what it prints with the text below; how many blocks ran."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed, ran = "", 0
    for language, text in blocks(page.read_text()):
        if language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(text, str(page), "exec"), namespace)
            printed, ran = out.getvalue(), ran + 1
        else:
            assert printed.strip() == text.strip(), page
    return ran


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(page) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_every_page_is_python(page: Path) -> None:
    for language, text in blocks(page.read_text()):
        if language == "python":
            ast.parse(text, str(page))


def test_what_a_page_shows_and_its_code_does_not_print_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n")
    assert run(page) == 1
    page.write_text(page.read_text().replace("```text\n2", "```text\n3"))
    with pytest.raises(AssertionError):
        run(page)
