# Two commands: `make demo` shows what lmsmith does, `make test` shows that it does it right.
# Both make .venv from python3 and the package index, and install again only when what is installed has changed.

PYTHON ?= python3
BIN = .venv/bin
# Neighbours stay together (worksteal), so that what they share is made once and not in each process.
WORKERS = -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test lint slow learn docs clean

demo: .venv/lmsmith.installed
	$(BIN)/lmsmith demo

test: .venv/dev.installed
	$(BIN)/python -m pytest $(WORKERS)

slow: .venv/dev.installed
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not gpu"

learn: .venv/lmsmith.installed
	$(BIN)/python docs/learn/make.py

docs: .venv/lmsmith.installed
	$(BIN)/python docs/make_site.py

lint: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent lmsmith/__init__.py lmsmith/api lmsmith/config \
	    lmsmith/errors.py lmsmith/extend.py lmsmith/train/hooks
	$(BIN)/lint-imports

.venv/lmsmith.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "lmsmith needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev.installed: .venv/lmsmith.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv
