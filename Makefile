# Everything happens in .venv, which the first call makes. `make demo` and `make test` are all that a fresh machine needs.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint clean

demo: .venv/core
	$(BIN)/forceserver demo --no-browser

test: .venv/test
	$(BIN)/python -m pytest

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/core: pyproject.toml constraints.txt
	@echo "installing into .venv (torch is large: some minutes at the first call) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) --editable ".[metatomic]"
	@touch $@

.venv/test: .venv/core
	@echo "installing the test and development tools ..."
	@$(INSTALL) --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
