"""The notebooks can be run again: any cell twice, from the middle, after an interrupt, from the first cell.

Each is run in a kernel with few charts, put in as papermill does: a cell after the one that is tagged ``parameters``.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def parse(cell):
    return ast.parse(re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_says_in_words_what_did_not_hold(name):
    claims = [node for cell in code_cells(name) for node in ast.walk(parse(cell)) if isinstance(node, ast.Assert)]
    assert claims
    assert [ast.unparse(claim) for claim in claims if claim.msg is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_choices_are_in_one_cell_that_papermill_finds(name):
    (choices,) = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    assert all(isinstance(statement, ast.Assign) for statement in parse(choices).body)


class Run:
    """A kernel on a notebook whose choices were replaced; cells are known by their position among those of code."""

    def __init__(self, name, choices):
        notebook = read(name)
        for cell in notebook.cells:
            cell.pop("outputs", None)
            if cell.cell_type == "code":
                cell.outputs = []
        (at,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        lines = "\n".join(f"{key} = {value!r}" for key, value in choices.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
        self.client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
        self.notebook = notebook
        self.cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]

    def __call__(self, *cells):
        """Run these cells, or all; what one raises is raised here, with the cell's words."""
        for position in cells or range(len(self.cells)):
            index = self.cells[position]
            self.client.execute_cell(self.notebook.cells[index], index)

    def ask(self, code):
        """Return what an expression is in the kernel, through JSON."""
        cell = nbformat.v4.new_code_cell(f"import json; print(json.dumps({code}))")
        self.notebook.cells.append(cell)
        self.client.execute_cell(cell, len(self.notebook.cells) - 1)
        return json.loads("".join(output.text for output in cell.outputs if output.output_type == "stream"))


CHOICES = {
    "01_quickstart": {"MODEL": "wordllama", "CHARTS": 300},
    "02_embedding_models": {},  # its claims are about this sample; what was measured is kept on disk
    "03_batch_timeouts": {},  # likewise
    "04_recovery": {"TRIED": ["server killed", "cut off", "out of memory"]},
    "05_policies": {"FIELDS": ["reconcile", "tell_blips"]},
    "06_operations": {"CHARTS": 60},
    "07_your_charts": {"COMPARED": ["bm25", "wordllama"]},
}
SECONDS_ONLY = ("01_quickstart", "05_policies")  # the others take minutes

SERVERS = """[line for line in __import__("subprocess").run(
    ["ps", "-o", "comm", "--ppid", str(__import__("os").getpid())], capture_output=True, text=True
).stdout.splitlines() if "server" in line]"""


@pytest.mark.parametrize(
    "name", [name if name in SECONDS_ONLY else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_each_cell_can_be_run_twice_and_then_from_the_middle(name):
    run = Run(name, CHOICES[name])
    with run.client.setup_kernel():
        for position in range(len(run.cells)):
            run(position, position)
        run(*range(len(run.cells) // 2, len(run.cells)))
        servers = run.ask(SERVERS)
        run(0, 1, 2, 3)  # imports, choices, those put in, and the first that works with them
        assert run.ask(SERVERS) == servers, "run again, the first cells have left a server"


def test_a_cell_that_was_interrupted_can_be_run_again():
    run = Run("01_quickstart", CHOICES["01_quickstart"])
    lose_redis = next(p for p, index in enumerate(run.cells) if "redis.kill()" in run.notebook.cells[index].source)
    with run.client.setup_kernel():
        run(0, 1, 2, 3)
        source = run.notebook.cells[run.cells[lose_redis]].source
        assert "killed = time" in source
        broken = source.replace("killed = time", "raise KeyboardInterrupt\nkilled = time", 1)
        cell = nbformat.v4.new_code_cell(broken)
        run.notebook.cells.append(cell)
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            run.client.execute_cell(cell, len(run.notebook.cells) - 1)
        assert run.ask("lab.redis.running") is False
        run(lose_redis, lose_redis + 1)  # as if nothing had been
