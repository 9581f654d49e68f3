# make run    install and run the main job (scikit-learn's digits; nothing is downloaded)
# make test   install what tests need and run everything that CI runs
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export OMP_NUM_THREADS := 1

.PHONY: run install test test-faults dev lint types contract unit docs wheel protocol clean

run: install
	$(BIN)/fedstill simulate digits

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' # --group

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[simulations]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[simulations,ray,hf,codec,metrics,serve,export]' --group dev
	touch $@

test: dev lint types contract unit wheel

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .

types:
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks docs/examples

contract:
	$(BIN)/lint-imports

# A process for each core; a file's tests stay together. What kills processes again and again: make test-faults.
unit:
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'not faults'

test-faults: dev
	$(BIN)/pytest -q tests/flower/test_faults.py

docs:
	$(BIN)/pytest -q tests/docs

wheel:
	$(BIN)/python tests/wheel/check_wheel.py

protocol: dev
	$(BIN)/python -m fedstill.common.inference.generate

clean:
	rm -rf $(VENV) runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
