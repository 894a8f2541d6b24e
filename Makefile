# memtag_research. `make` alone prints what there is to do. A fresh clone needs Python 3.11+ and make.
# Every variable can be set on the command line: make report PERIOD=2017-11 REPORT_LANG=zh

PYTHON     ?=
VENV       ?= .venv
WORKSPACE  ?= data/complete-journey
DATASET    ?= complete-journey
PERIOD     ?= 2017-12
REPORT     ?= segment
REPORT_LANG  ?= en
PYTEST     ?=

BIN        := $(VENV)/bin
HOUSE      := settings.ini setup.py pyproject.toml constraints.txt
INSTALL    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e
NOTEBOOKS  := $(BIN)/python scripts/notebooks.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:   # the steps share one environment; pip and pytest use both cores by themselves
.PHONY: help report test in-sync lint notebooks unit prove lab edit sync docs bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Start with \`make report\`. Variables, with what they are now:"
	@echo "  PERIOD=$(PERIOD) REPORT=$(REPORT) REPORT_LANG=$(REPORT_LANG) WORKSPACE=$(WORKSPACE) VENV=$(VENV) PYTHON=$(PYTHON)"

# ingest does nothing, and the runner skips, while data, mapping and code are as they were
report: $(WORKSPACE)/memtag.yaml  ## publish the segment report on real data (Complete Journey, December 2017)
	$(BIN)/memtag ingest -w $(WORKSPACE)
	$(BIN)/memtag report run $(REPORT) --period $(PERIOD) --lang $(REPORT_LANG) -w $(WORKSPACE) --out reports

test: in-sync lint notebooks unit  ## what has to pass before a commit: notebooks in sync, lint, notebooks run, pytest

in-sync: $(VENV)/.test  ## package and notebooks say the same (changes nothing; `make sync` mends)
	$(NOTEBOOKS) check

lint: $(VENV)/.test  ## ruff
	$(BIN)/ruff check .

notebooks: $(VENV)/.test  ## run every library notebook and tutorial (the reports are run by pytest)
	$(BIN)/nbdev-test nbs --skip-folder-re '^([_.]|reports$$)' --n-workers 2 --timing

unit: $(VENV)/.test  ## pytest; PYTEST='-k rfm -x' is passed on
	$(BIN)/pytest $(PYTEST)

prove: $(VENV)/.test  ## the proofs that take longer; each is skipped while its code and data are unchanged
	$(BIN)/pytest tests/proofs -m "" -rs --durations=10 $(PYTEST)

lab: $(VENV)/.lab  ## open the tutorials in JupyterLab
	$(BIN)/jupyter lab nbs/tutorials

edit: $(VENV)/.test  ## notebook as text: make edit NB=measures/03_rfm writes .pct/measures/03_rfm.py
	$(NOTEBOOKS) edit $(NB)

sync: $(VENV)/.test  ## edited text → notebook → package, and run what changed (NB=… makes a new notebook)
	$(NOTEBOOKS) sync $(NB)

docs: $(VENV)/.test  ## regenerate the pages that come from code: metrics, glossary, coverage
	$(BIN)/python scripts/make_docs.py

bench: $(VENV)/.test  ## RFM against SQL, polars, pandas and lifetimes (long; see benchmarks/README.md)
	$(BIN)/python benchmarks/rfm/run.py

clean:  ## remove the environment, the demonstration workspace, published reports and caches
	rm -rf $(VENV) build dist *.egg-info .ruff_cache .hypothesis metastore_db spark-warehouse .workspaces data/complete-journey
	find reports -mindepth 1 ! -name README.md -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@python=$$(scripts/find_python.sh $(PYTHON)) && echo "$$python -m venv $(VENV)" && "$$python" -m venv $(VENV)

$(VENV)/.report: $(HOUSE) | $(VENV)/bin/python
	$(INSTALL) '.[reports,datasets]'
	@touch $@

$(VENV)/.lab: $(VENV)/.report
	$(INSTALL) '.[reports,datasets,models,lab]'
	@touch $@

$(VENV)/.test: $(VENV)/.report
	$(INSTALL) '.[reports,datasets,models,lab,spark,postgres,dev]'
	@touch $@

$(WORKSPACE)/memtag.yaml: | $(VENV)/.report
	$(BIN)/memtag init $(WORKSPACE) --dataset $(DATASET)
