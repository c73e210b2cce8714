# make demo   sets itself up, then plans, trains, certifies and reports on real patients
# make test   sets itself up, then runs the fast suite
VENV ?= .venv
PY = $(VENV)/bin/python
CONFIDE = $(VENV)/bin/confide
# Two threads are what the smallest supported machine has; more workers only fight over them. A worker keeps to one half
# of the modules until it steals, so that what a module makes once is made once.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
# Byte code is kept even where the environment says otherwise: tests start dozens of interpreters, and without it each of
# them compiles the package, and each worker rewrites every assertion, again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test test-slow test-browser lint types imports docs benchmarks clean

help:
	@grep -E '^# make|^## ' Makefile | sed 's/^#* *//'

setup:
	@scripts/setup.sh $(VENV) dev

## make demo           plan, train, certify and report on 312 liver patients with 1,945 visits
demo: setup
	@$(PY) scripts/demo.py

## make test           the fast suite
test: setup
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal

## make test-slow      audits, kill tests, statistical checks
test-slow: setup
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "slow and not browser"

## make test-browser   pages in headless Chromium (Debian: apt-get install chromium)
test-browser: setup
	@$(PY) -m pytest -m browser

## make lint           ruff, mypy and the import contracts
lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

## make docs           the documentation as HTML in docs/_build
docs:
	@scripts/setup.sh $(VENV) dev,docs
	@$(VENV)/bin/sphinx-build -q -W --keep-going -b html docs docs/_build

clean:
	rm -rf build docs/_build .mypy_cache .ruff_cache .pytest_cache
