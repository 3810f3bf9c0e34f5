# `make demo` and `make test` set up all they need. PYTHON is any Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests
DEMO_NAME := demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install demo demo-teacher check test

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'distune needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]' --group dev
	touch $@

# A real study, start to end: corpus, embedded PostgreSQL, two workers, twelve trials. A fresh study each time.
demo: install
	$(BIN)/python -m demo.corpus demo/corpus
	$(BIN)/distune launch recipes/demo.yaml --name $(DEMO_NAME) --workers 2

# Train the demo's teacher again; the repository ships the result.
demo-teacher: install
	$(BIN)/python -m demo.corpus --for-teacher demo/corpus-for-teacher
	$(BIN)/python -m demo.teacher --corpus demo/corpus-for-teacher --out demo/teacher

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit

test: install
	$(BIN)/python -m pytest $(TESTS)
