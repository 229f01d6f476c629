# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-s3 test test-all test-cluster bench docs lint format lock images lock-images clean

demo: $(VENV)/.installed  ## the whole DAG on a simulated screen, here; ends with the accuracy table and the report's path
	$(BIN)/cellsignal run --config demo --out runs/demo

demo-s3: $(VENV)/.installed  ## the same on a SeaweedFS server, which this starts and ends; OPTIONS are more options of the run
	$(BIN)/python -m tests.seaweedfs -- $(BIN)/cellsignal run --config demo --store s3://cellsignal/demo --out runs/demo-s3 $(OPTIONS)

test: $(VENV)/.installed  ## the fast tests; COVERAGE=1 also measures which lines they run
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(if $(COVERAGE),--cov --cov-report=html --cov-report=term:skip-covered)

test-all: $(VENV)/.installed  ## also the slow ones and whatever else this machine can run
	$(BIN)/python -m pytest -m "not docker and not cluster and not gpu"

test-cluster: $(VENV)/.installed  ## on a real cluster, which the environment gives: see docs/cluster-test.md
	$(BIN)/python -m pytest -m cluster -o timeout=7200 tests/cluster

bench: $(VENV)/.installed  ## figures for this machine: a table, and bench.json; ROWS=loading measures a part
	$(BIN)/python -m tests.bench $(ROWS)

docs: $(VENV)/.installed  ## the pages as a site below site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir site

lint: $(VENV)/.installed  ## ruff, mypy (strict), import rules, the Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

format: $(VENV)/.installed  ## rewrites the sources in the project's format
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet

lock: $(VENV)/.installed  ## constraints.txt from what is installed
	(sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable) > constraints.partial
	mv constraints.partial constraints.txt

images: $(VENV)/.installed  ## the images of the steps, on this machine
	$(BIN)/cellsignal images build

# The versions of constraints.txt with the hashes of all their files; gpu.lock has what cpu.lock does not. None names an index.
LOCK := $(BIN)/uv pip compile --quiet --constraint constraints.txt --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate --custom-compile-command "make lock-images"
lock-images: $(VENV)/.installed  ## docker/*.lock from pyproject.toml and constraints.txt
	$(LOCK) docker/build.in --output-file docker/build.lock
	$(LOCK) pyproject.toml --output-file docker/cpu.lock
	$(LOCK) pyproject.toml --extra train \
		$$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' docker/cpu.lock) --output-file docker/gpu.lock

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,docker,dev]"
	touch $@

clean:  ## the environment and the runs; the object store in the user's cache folder stays
	rm -rf $(VENV) runs site htmlcov
