# make demo    a small FIBER finds things by words and learns a new one, in 5 minutes; a page in OUTPUT/demo
# make test    unit tests and the golden cases of narrow networks (MB_SHARED=folder for those that need shared material)
# make lint    style, types, spelling
#
# Each makes .venv and installs what it needs where that was not done yet. It takes Python 3.10 or newer.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
TOOLS  := $(VENV)/.installed-dev

.PHONY: install demo test lint

install: $(TOOLS)

$(READY): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable .
	touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python -m maskrcnn_benchmark.demo

test: $(TOOLS)
	$(BIN)/python -m pytest -m "not full"

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
