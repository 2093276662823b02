# The commands of the README and of CI. `make demo` is enough on a fresh machine with Python and make.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install scripts demo demo-2dmd pretrained test lint bench stop clean

help:
	@echo "make demo                  install, start the services, run the loop on the built-in data"
	@echo "make demo-2dmd DATA=DIR    the same loop on the DFT data of 2DMD"
	@echo "make pretrained DATA=DIR   train and measure the model that the package ships again, from 2DMD"
	@echo "make test | lint | bench   the tests, the checks of style and types, the benchmarks"
	@echo "make install               the environment in .venv only (PYTHON=python3.12 chooses the interpreter)"
	@echo "make stop                  stop what runs for this directory"
	@echo "make clean                 stop, and remove the environment and caches; data in .screening stay"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt package.json package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is absent or older than Python 3.11; name a newer one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || $(PYTHON) -m venv --clear .venv
	@echo "installing into .venv; the first time takes some minutes"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@$(MAKE) --no-print-directory scripts
	@touch $(STAMP)

# Scripts of the pages from npm, pinned by package-lock.json; the pages work without them, only plainer.
scripts:
	@if ! command -v npm >/dev/null; then \
	  echo "npm is absent: pages without 3Dmol.js, htmx and Swagger UI; install Node and call make scripts for them"; \
	elif ! { npm ci --silent && npm run --silent build; }; then \
	  echo "npm could not fetch the scripts of the pages; they work without, and make scripts tries again" >&2; \
	fi

demo: install
	$(BIN)/screening demo

demo-2dmd: install
	@test -n "$(DATA)" || { echo "say where 2DMD is: make demo-2dmd DATA=path/to/2dmd" >&2; exit 2; }
	$(BIN)/screening demo-2dmd "$(DATA)"

pretrained: install
	@test -n "$(DATA)" || { echo "say where 2DMD is: make pretrained DATA=path/to/2dmd" >&2; exit 2; }
	mkdir -p screening/data/pretrained
	$(BIN)/screening model reproduce "$(DATA)" --output screening/data/pretrained/2dmd-pbe.safetensors

# Two processes, a file of tests in one of them; in the order of their names, for the longest files are not the last.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m pytest tests/benchmarks -o python_files='bench_*.py' -o python_functions='bench_*' -q

stop:
	@test ! -x $(BIN)/screening || $(BIN)/screening down

clean: stop
	rm -rf .venv node_modules screening/web/static/vendor build dist screening.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find screening workers migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +
