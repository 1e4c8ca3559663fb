# One virtual environment in .venv, made by the first target that needs it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 0
# Threads that wait in a loop starve each other on a busy machine (ten times slower, measured on two cores).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test quality style bench clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ccpo needs Python 3.11 or newer (TRL 1.16 does); this is %s. Set PYTHON=python3.12" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## train a tiny team with CCPO on the embedded task, about three minutes on two cores
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml examples/train_ccpo.py --seed $(SEED)

test: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-report=term

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## every benchmark: prints tables, writes outputs/bench/*.json
	@set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) outputs build *.egg-info src/*.egg-info .pytest_cache .ruff_cache .coverage*
