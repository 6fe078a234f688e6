# `make help` says what each target does. The first run of a target installs what it needs.

PYTHON := .venv/bin/python
COVERAGE := 90
SETUP := command -v python3 >/dev/null || { echo "Python 3.11 or newer is needed, and there is no python3." >&2; exit 1; }; python3 tools/setup.py

.PHONY: help demo test prove lint audit bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: ## start a hub with demo users on http://127.0.0.1:8000/ (PORT, STATE and TOKEN are honoured)
	@$(SETUP) demo
	@exec $(PYTHON) -m demo

test: ## check style, types and layers, then run the tests with coverage
	@$(SETUP) test
	@$(PYTHON) tools/audit.py --advise
	@$(MAKE) --no-print-directory lint
	@$(PYTHON) -m pytest -n 3 --dist loadscope --no-loadscope-reorder --cov --cov-branch --cov-report=term --cov-fail-under=$(COVERAGE)

prove: ## run the full counts of races, kills and rounds (hours)
	@$(SETUP) test
	@REMOTEGPU_PROVE=1 $(PYTHON) -m pytest -m prove

lint: ## check style, types and layers only
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@.venv/bin/lint-imports

audit: ## look for known vulnerabilities in what is installed; fails when there is one
	@$(PYTHON) tools/audit.py

bench: ## run the benchmarks
	@$(SETUP) test
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(PYTHON) $$file || exit 1; done

clean: ## remove what set-up, tests and builds made; the demo's state stays
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -prune -exec rm -rf {} +
