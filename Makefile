# Everything a newcomer needs: `make quickstart` and `make test` set themselves up. Quick the second time.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test check bench clean
.DEFAULT_GOAL := quickstart

# The lock names every version; the package itself is installed in place.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(READY)  ## text to a trained, scored, exported bilingual model, in minutes
	$(BIN)/xmodel run recipes/quickstart.yaml

test: $(READY)  ## the whole test suite, on all cores
	$(BIN)/python -m pytest -n auto

check: $(READY)  ## style and types
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/basedpyright

bench: $(READY)  ## side-by-side measurements; results go to benchmarks/results/
	$(BIN)/python benchmarks/train_step.py

clean:  ## remove the environment and caches, never a run
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
