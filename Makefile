# Needs Python >= 3.11 and make. Everything else is installed into .venv by the first target that wants it; pip's own
# settings apply, such as PIP_INDEX_URL=https://download.pytorch.org/whl/cpu for PyTorch without CUDA.

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= book
JOBS    ?= 2
FAULTS_SEED ?= 0

# One thread a process: two processes of one thread do more work than one process of two.
export OMP_NUM_THREADS ?= 1
export PATH := $(abspath $(VENV))/bin:$(PATH)

STUDY := $(VENV)/.ready-study
DEV   := $(VENV)/.ready-dev
$(STUDY): EXTRAS = study
$(DEV):   EXTRAS = study,dev
LOG := _build/logs/setup.log

.DEFAULT_GOAL := help
.PHONY: help book pdf test test-fast faults lint clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Options: PROFILE=quick|book|paper (now $(PROFILE)), JOBS=n processes (now $(JOBS)), PYTHON=python3.x, VENV=folder"

# Only quick is small enough to train here what is missing; of the others the results that are there are shown.
book: $(STUDY)  ## build the book from the results of PROFILE (quick: train first): _build/html/index.html
	@python -m study.book --profile $(PROFILE) --jobs $(JOBS) $(if $(filter quick,$(PROFILE)),--train)

pdf: $(DEV) book  ## the same as one PDF, which a Chromium prints: _build/book.pdf
	@python -m study.pdf

test: lint  ## lint, then the whole test suite with coverage
	pytest --numprocesses $(JOBS) --dist loadgroup --cov --cov-report=
	coverage report --include='rnlib/*' --fail-under=95
	coverage report --include='study/*' --fail-under=90

test-fast: $(DEV)  ## the tests that take no time, for while you work
	pytest --numprocesses $(JOBS) --dist loadgroup -m "not slow"

faults: $(DEV)  ## kill, fill, corrupt and attack the programs; the counts go to results/faults.csv
	FAULTS=all FAULTS_SEED=$(FAULTS_SEED) FAULTS_COUNTS=results/faults.csv \
	  pytest tests/faults tests/cluster --numprocesses $(JOBS) --dist loadgroup

lint: $(DEV)  ## style and types
	ruff check .
	ruff format --check .
	mypy

clean:  ## remove everything built; results/ and .venv stay
	rm -rf _build .snakemake .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* build *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Made anew when the requirements change. The stamp comes last: an installation that was cut off is taken up again.
$(STUDY) $(DEV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rnlib needs Python 3.11 or newer, and '$(PYTHON)' is not one ($$($(PYTHON) --version 2>&1))." >&2; \
	  echo "Name another with: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@mkdir -p $(dir $(LOG)); printf 'Setting up $(VENV), which takes minutes ... '; start=$$(date +%s); \
	{ $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'; } >$(LOG) 2>&1 || { \
	  echo "failed. The end of $(LOG):"; tail -n 30 $(LOG); exit 1; }; \
	echo "$$(($$(date +%s) - start)) s"
	@touch $(STUDY) $@
