# Two commands do all the set-up, each from a bare clone: `make demo` and `make test`. A second run installs nothing.

PYTHON ?= python3.11
# On a machine without a GPU the CPU build of torch is enough, and several GB smaller: see the README.
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The lab's models come inside wheels. Nothing is asked of a model hub.
export HF_HUB_OFFLINE := 1

.PHONY: help demo test lint types unit notebooks bench catalogue lab clean

help:            ## this list
	@grep -E '^[a-z]+: .*##|^[a-z]+: *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/core: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing copilotlab into $(VENV) (once; torch first) ..."
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "installing what tests, benchmarks and notebooks need ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/bench: $(VENV)/dev
	@echo "installing the peers that the benchmarks compare with ..."
	@$(PIP) --editable '.[bench]'
	@touch $@

demo: $(VENV)/core   ## four nodes, one real server, a catalogue; the server dies and comes back empty
	@$(BIN)/copilotlab demo

test: lint types unit notebooks   ## everything that decides whether a change lands

lint: $(VENV)/dev   ## style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/dev   ## types
	@$(BIN)/mypy

unit: $(VENV)/dev   ## unit, protocol and fault tests
	@$(BIN)/pytest tests

notebooks: $(VENV)/dev   ## the notebooks, as regression tests
	@$(BIN)/pytest --nbval --nbval-current-env --nbval-sanitize-with tests/notebooks/sanitize.cfg notebooks

bench: $(VENV)/bench   ## the benchmarks: search, publish to visible, retrieval (minutes; not part of the tests)
	@$(BIN)/python tests/benchmarks/bench_search.py
	@$(BIN)/python tests/benchmarks/bench_publish.py
	@$(BIN)/python tests/benchmarks/bench_retrieval.py

catalogue: $(VENV)/dev   ## make data/*.parquet again from data/subjects
	@$(BIN)/python data/make_catalogue.py

lab: $(VENV)/dev   ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir notebooks

clean:           ## remove what was installed and cached
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
