# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all bench lint format lock clean

demo: $(VENV)/.installed  ## the whole DAG on a simulated screen, here; ends with the accuracy table and the report's path
	$(BIN)/cellsignal run --config demo --out runs/demo

test: $(VENV)/.installed  ## the fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.installed  ## also the slow ones and whatever else this machine can run
	$(BIN)/python -m pytest -m "not docker and not cluster and not gpu"

bench: $(VENV)/.installed  ## figures for this machine: a table, and bench.json
	$(BIN)/python -m tests.bench

lint: $(VENV)/.installed  ## ruff, mypy (strict on the core), import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## rewrites the sources in the project's format
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet

lock: $(VENV)/.installed  ## constraints.txt from what is installed
	(sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable) > constraints.partial
	mv constraints.partial constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev]"
	touch $@

clean:  ## the environment and the runs; the object store in the user's cache folder stays
	rm -rf $(VENV) runs
