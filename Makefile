# Everything a newcomer needs: `make quickstart` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 42

.PHONY: quickstart seeds demo test lint format clean
.DELETE_ON_ERROR:

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

quickstart: .venv/.installed
	$(BIN)/python -m dataset_prep.quickstart --seed $(SEED)

# Trains further bridge seeds on the same world and writes the table of docs/quickstart.md.
seeds: .venv/.installed
	$(BIN)/python -m dataset_prep.quickstart --seed 42 --seed 43 --table docs/quickstart.md

# Opens the quickstart's model in a page on this machine; without one, says what makes it.
demo: .venv/.installed
	$(BIN)/python demo.py --cfg-path eval_configs/quickstart.yaml --gpu-id -1

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_imports.py

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf output .pytest_cache .ruff_cache
