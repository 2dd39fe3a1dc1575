# Everything a newcomer needs: `make quickstart` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 42

.PHONY: quickstart seeds demo test test-fast lint format clean
.DELETE_ON_ERROR:

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

quickstart: .venv/.installed
	$(BIN)/python -m dataset_prep.quickstart --seed $(SEED)

# Two bridge seeds with this processor's instructions and with AVX2 alone; writes the tables of the two pages.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
AVX2_OUT := output/quickstart_avx2
seeds: .venv/.installed
	$(AVX2) $(BIN)/python -m dataset_prep.quickstart --seed 42 --seed 43 --out $(AVX2_OUT)
	$(BIN)/python -m dataset_prep.quickstart --seed 42 --seed 43 --table README.md --table docs/quickstart.md \
	  --beside $(AVX2_OUT)/report.json --beside $(AVX2_OUT)/seed43/report.json

# Opens the quickstart's model in a page on this machine; without one, says what makes it.
demo: .venv/.installed
	$(BIN)/python demo.py --cfg-path eval_configs/quickstart.yaml --gpu-id -1

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test test-fast: export OMP_NUM_THREADS = 1

# The daily loop: every room, without what takes seconds or a browser.
test-fast: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not browser"

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_imports.py

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf output .pytest_cache .ruff_cache
