# `make demo` shows what lmsmith does, `make test` runs the tests, `make docs` builds build/site/index.html.
# Each creates .venv from python3 and the package index, and compiles lmsmith for this processor. It installs again
# only if the requirements change.

PYTHON ?= python3
BIN = .venv/bin
# worksteal gives a process neighbouring tests, so the fixtures that they share are rarely built twice.
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
	@echo "compiling lmsmith for this processor, so that no command waits for it"
	-$(BIN)/python -m lmsmith.precompile
	touch $@

.venv/dev.installed: .venv/lmsmith.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv
