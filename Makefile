# Two commands do all the set-up, each from a bare clone: `make demo` and `make test`. A second run installs nothing.

PYTHON ?= python3.11
# For tests and notebooks; the demo needs none. On a machine without a GPU the CPU build is enough, and several GB smaller.
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The lab's models come inside wheels. Nothing is asked of a model hub.
export HF_HUB_OFFLINE := 1

.PHONY: help demo test lint types unit alone axe-core browser scenarios planted-bugs notebooks bench slow faults-table soak \
        screenshots catalogue serve lab clean chromium debian-redis prometheus superset dbt site docs dist release-check

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+: *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/core: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing copilotlab into $(VENV) (once) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "installing what tests, benchmarks and notebooks need (torch first) ..."
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/core   ## four nodes, one real server, a catalogue; the server dies and comes back empty
	@$(BIN)/copilotlab demo

# As root, else by sudo if that needs no password. Without Chromium the browser tests are skipped; in CI they fail.
# libatomic1: what drives it, in playwright's wheel, needs it, and a machine without a compiler has none.
AS_ROOT := $(shell test "$$(id -u)" = 0 || echo sudo -n)
chromium: $(VENV)/dev
	@(command -v chromium && $(BIN)/playwright --version) >/dev/null 2>&1 || (echo "installing Chromium for the browser tests (once) ..." \
	  && $(AS_ROOT) apt-get -qq update \
	  && $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 \
	       install --no-install-recommends chromium libatomic1 >/dev/null) \
	  || echo "Chromium cannot be installed here: apt-get install chromium libatomic1, or set COPILOTLAB_CHROMIUM"

# Sentinel and TLS, which the wheel's server has not. Unpacked, not installed: the lab takes the server on the PATH.
DEBIAN_REDIS := build/debian-redis
debian-redis:    ## Debian's Redis, for the tests of docs/deployment.md
	@$(DEBIAN_REDIS)/redis-server --version >/dev/null 2>&1 || (echo "fetching Debian's Redis (once) ..." \
	  && mkdir -p $(DEBIAN_REDIS) && $(AS_ROOT) apt-get -qq update && cd $(DEBIAN_REDIS) \
	  && apt-get -qq download redis-server redis-tools libjemalloc2 liblzf1 libatomic1 2>/dev/null \
	  && for package in *.deb; do dpkg -x $$package .; rm $$package; done \
	  && printf '#!/bin/sh\nhere=$$(dirname "$$0")/usr\nLD_LIBRARY_PATH=$$(echo $$here/lib/*-linux-gnu) exec $$here/bin/redis-server "$$@"\n' \
	       > redis-server && chmod +x redis-server) \
	  || echo "Debian's Redis cannot be had here: set COPILOTLAB_DEBIAN_REDIS to a redis-server with TLS"

# Debian's promtool checks deploy/prometheus and runs the rules' own tests. Unpacked, not installed.
PROMTOOL := build/prometheus/promtool
prometheus:      ## Prometheus' own tool, for the tests of deploy/
	@$(PROMTOOL) --version >/dev/null 2>&1 || (echo "fetching promtool (once) ..." \
	  && mkdir -p build/prometheus && $(AS_ROOT) apt-get -qq update && cd build/prometheus \
	  && apt-get -qq download prometheus 2>/dev/null \
	  && dpkg -x prometheus_*.deb unpacked && mv unpacked/usr/bin/promtool . && rm -r unpacked prometheus_*.deb) \
	  || echo "promtool cannot be had here: set COPILOTLAB_PROMTOOL to it"

# The tools themselves, for the slow tests of the importers: each in a venv of its own, since none bears ours. Superset does
# not name all that it needs, and no newer Flask-Caching; dbt from 1.12 on builds with what it downloads from elsewhere.
superset:        ## Superset from PyPI, for a slow test (minutes, once; 1 GB)
	@build/superset/bin/python -c 'import superset, rich, cachetools' >/dev/null 2>&1 || (echo "installing Superset into build/superset (once) ..." \
	  && $(PYTHON) -m venv build/superset && build/superset/bin/pip install --quiet --disable-pip-version-check \
	       "apache-superset==6.1.0" "flask-caching==2.3.1" rich cachetools) \
	  || echo "Superset cannot be had here: set COPILOTLAB_SUPERSET to the bin folder of its venv"

dbt:             ## dbt-core from PyPI, for a slow test
	@build/dbt/bin/dbt --version >/dev/null 2>&1 || (echo "installing dbt into build/dbt (once) ..." \
	  && $(PYTHON) -m venv build/dbt && build/dbt/bin/pip install --quiet --disable-pip-version-check \
	       "dbt-core>=1.10,<1.12" "dbt-postgres>=1.9") \
	  || echo "dbt cannot be had here: set COPILOTLAB_DBT to the bin folder of its venv"

# What checks the panels for those who use a keyboard or a screen reader: one file, unpacked, not installed.
AXE := build/axe-core
axe-core:        ## axe-core from npm, for the browser tests
	@test -e $(AXE)/axe.min.js || (echo "fetching axe-core (once) ..." && mkdir -p $(AXE) && cd $(AXE) \
	  && npm pack --silent axe-core@4 >/dev/null && tar -xzf axe-core-*.tgz --strip-components=1 package/axe.min.js package/LICENSE \
	  && rm axe-core-*.tgz) || echo "axe-core cannot be had here: set COPILOTLAB_AXE to an axe.min.js"

test:            ## everything that decides whether a change lands; one failure does not hide the next
	@$(MAKE) --no-print-directory --keep-going lint types site unit alone browser notebooks \
	  || (echo "tests that failed, of all parts:"; $(BIN)/pytest --quiet --no-header --cache-show cache/lastfailed; exit 1)

lint: $(VENV)/dev   ## style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/dev   ## types
	@$(BIN)/mypy

# One seed for all that Hypothesis draws, so that the tests say the same twice; `make scenarios` draws anew each time.
SEEDED := --hypothesis-seed $(or $(SEED),20261125)
# Three processes share what does not measure time: half of it waits. Whichever is free takes what is left.
SHARED := --numprocesses 3 --dist worksteal

unit: $(VENV)/dev debian-redis prometheus   ## unit, protocol and fault tests, all but those marked alone (SEED=... for other scenarios)
	@echo "hypothesis: seed $(or $(SEED),20261125)"
	@$(BIN)/pytest tests --ignore tests/browser $(SHARED) -m "not slow and not alone" $(SEEDED)

alone: $(VENV)/dev debian-redis   ## the tests that measure time, one after the other
	@$(BIN)/pytest tests --ignore tests/browser -m "alone and not slow" $(SEEDED)

browser: chromium axe-core   ## the panels in a real browser, under JupyterLab and Voila
	@$(BIN)/pytest tests/browser --numprocesses 2 --dist loadfile

scenarios: $(VENV)/dev   ## the protocol's state machine, 50,000 scenarios (half an hour; not part of the tests)
	@COPILOTLAB_SCENARIOS=$${COPILOTLAB_SCENARIOS:-50000} $(BIN)/pytest tests/protocol/test_state_machine.py --timeout 0 $(SHARED)

planted-bugs: $(VENV)/dev   ## bugs planted into the protocol, one at a time: the tests must find each (minutes)
	@$(BIN)/python tests/protocol/planted_bugs.py

# Two at a time, each from its first cell to its last in one process; the longest first, so that none is waited for.
# Then, alone, the one that lets four clusters run in real time.
LONGEST := notebooks/03_batch_timeouts.ipynb
REAL_TIME := notebooks/04_recovery.ipynb
NBVAL := $(BIN)/pytest --nbval --nbval-current-env --nbval-kernel-startup-timeout 300 \
	--nbval-sanitize-with tests/notebooks/sanitize.cfg
notebooks: $(VENV)/dev   ## the notebooks, as regression tests
	@$(NBVAL) --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  $(LONGEST) $(filter-out $(LONGEST) $(REAL_TIME),$(sort $(wildcard notebooks/*.ipynb))); \
	  shared=$$?; $(NBVAL) $(REAL_TIME) && exit $$shared

bench: $(VENV)/dev   ## the benchmarks: search, publish to visible, retrieval (minutes; not part of the tests)
	@$(BIN)/python tests/benchmarks/bench_search.py
	@$(BIN)/python tests/benchmarks/bench_publish.py
	@$(BIN)/python tests/benchmarks/bench_recovery.py
	@$(BIN)/python tests/benchmarks/bench_retrieval.py

slow: $(VENV)/dev superset dbt   ## the tests that take minutes: 100,000 records past a reader that sleeps, network namespaces (as root)
	@$(BIN)/pytest tests -m slow

faults-table: $(VENV)/dev   ## every fault three times, slow ones too, and docs/faults.md from what was measured
	@$(BIN)/pytest $(addprefix tests/faults/test_,promises.py processes.py namespaces.py frozen_server.py bulk.py) \
		-m "slow or not slow" --faults-table docs/faults.md --faults-runs 3

soak: $(VENV)/dev   ## eight nodes in four processes, ten minutes of edits and faults (MINUTES=10 SEED=...)
	@$(BIN)/python tests/benchmarks/soak.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

screenshots: chromium   ## a picture of every panel, light and dark, in build/screenshots
	@$(BIN)/pytest --quiet tests/browser/screenshots.py
	@ls -d build/screenshots/*.png

catalogue: $(VENV)/dev   ## make data/*.parquet again from data/subjects
	@$(BIN)/python data/make_catalogue.py

serve: $(VENV)/dev   ## three services on an embedded server, and the admin page of the first
	@$(BIN)/python -m copilotlab.lab.services

lab: $(VENV)/dev   ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir notebooks

site: $(VENV)/dev   ## build/site; a link, anchor or name that leads nowhere is an error
	@$(BIN)/sphinx-build --fail-on-warning --nitpicky --fresh-env --quiet --builder html docs build/site

docs: site       ## the site, and what its pages show tried out
	@$(BIN)/pytest --quiet tests/docs
	@echo "build/site/index.html"

dist: $(VENV)/dev   ## wheel and sdist, checked, in dist
	@rm -rf dist && mkdir -p build
	@$(BIN)/python -m build --outdir dist . >build/dist.log 2>&1 || (cat build/dist.log; exit 1)
	@$(BIN)/twine check --strict dist/*

# PYTHONS="python3.12 python3.13": also there, but not its extras, since torch might be a larger build.
release-check: dist   ## the wheel in an empty venv, demoed from outside; its extras (PYTHONS="python3.12 ...": there too)
	@tests/release/check $(PYTHON) "$(TORCH)" $(CURDIR)/dist/*.whl
	@for python in $(PYTHONS); do tests/release/check $$python "" $(CURDIR)/dist/*.whl || exit 1; done

clean:           ## remove what was installed and cached
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
