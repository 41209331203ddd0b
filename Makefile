# Needs Python >= 3.11 and make; everything else is installed into .venv by the first target that wants it.
# pip's own settings (PIP_INDEX_URL and the like) apply, for instance to take a CPU-only build of PyTorch.

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= laptop
JOBS    ?= 2

# One thread a process: -j2 of one thread each does more work than one process of two threads.
export OMP_NUM_THREADS ?= 1
export PATH := $(abspath $(VENV))/bin:$(PATH)

READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help book test lint clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Options: PROFILE=quick|laptop|paper (now $(PROFILE)), JOBS=n processes (now $(JOBS)), PYTHON=python3.x"

# Only quick is small enough to train here what is missing; for the others the results that are there are used.
book: RUNS = $(if $(filter quick,$(PROFILE)),all,existing)
book: $(READY)  ## build the book from the results of PROFILE (quick: train first): _build/html/index.html
	snakemake --jobs $(JOBS) --keep-going --rerun-incomplete --config profile=$(PROFILE) runs=$(RUNS)

test: lint  ## lint and the whole test suite, with coverage
	pytest --numprocesses $(JOBS) --dist loadgroup --cov=rnlib --cov-fail-under=90

lint: $(READY)  ## style and types
	ruff check .
	ruff format --check .
	mypy

clean:  ## remove everything built; results/ and .venv stay
	rm -rf _build .snakemake .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Made anew when the requirements change. The stamp comes last: an installation that was cut off is taken up again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rnlib needs Python 3.11 or newer, and '$(PYTHON)' is not one (`$(PYTHON) --version 2>&1`)." >&2; \
	  echo "Name another with: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[study,dev]'
	@touch $@
