# Everything a newcomer types. Each recipe has one line of comment.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := $(VENV)-newest
.PHONY: help setup setup-dev setup-gpu run run-triton test test-fast test-long test-newest soak gpu lint docs

# The names of the packages that the base needs.
define DEPENDENCIES
import re
from importlib.metadata import requires
print(*(re.match(r"[\w.-]+", one)[0] for one in requires("sid-serve") if "extra ==" not in one))
endef
export DEPENDENCIES

# Print this list of targets
help:
	@awk '/^# /{text=substr($$0,3)} /^[a-z-]+:/{sub(/:.*/,"",$$1); printf "  make %-11s %s\n", $$1, text; text=""}' Makefile

# Make the virtual environment that serves (no torch)
setup: $(VENV)/.base

# Add what training, tests and lint need (PyTorch among it)
setup-dev: $(VENV)/.dev

# Add what serving on an NVIDIA card needs (Linux; some 3 GB with CUDA's libraries)
setup-gpu: $(VENV)/.gpu

# Serve the models in models/ on http://127.0.0.1:8000 (PORT=... to change)
run: setup
	$(BIN)/sid serve $(addprefix --port ,$(PORT))

# The same with the real Triton server computing (Linux on x86-64; installs it, 55 MB)
run-triton: $(VENV)/.triton
	$(BIN)/sid triton $(addprefix --port ,$(PORT))

# Run the test suite, but for the longest tests (test-long)
test: setup-dev
	@# Trainings in any order, whichever process is free; servers by file, which shares them.
	@echo "The first of two runs: training and tools"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not long' \
		--ignore tests/service --ignore tests/deploy
	@echo "The second of two runs: the server and its deployment"
	@$(BIN)/pytest -n 2 --dist loadfile -m 'not long' tests/service tests/deploy

# Run the tests that need under two seconds each, in under two minutes: before a commit
test-fast: setup-dev
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not long'

# Run the tests that take longest, which test leaves out
test-long: setup-dev
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m long

# Run the server's tests with the newest releases of what it stands on, in .venv-newest
test-newest:
	@echo "Installing the newest releases into $(NEWEST)"
	@$(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/pip install --quiet --editable '.[dev]'
	@# Past our own upper bounds, of which pip complains and goes on.
	@$(NEWEST)/bin/pip install --quiet --upgrade $$($(NEWEST)/bin/python -c "$$DEPENDENCIES")
	@$(NEWEST)/bin/pip freeze --exclude-editable
	@$(NEWEST)/bin/pytest tests/service

# Have misbehaving clients storm a real server for three minutes (SECONDS=... to change)
soak: setup-dev
	@SOAK_SECONDS=$(or $(SECONDS),180) $(BIN)/pytest -s tests/service/test_storm.py

# Check and measure on an NVIDIA card, in eight minutes (TOY=1: on the CPU; ONLY=training: a part)
gpu: setup-dev
	@$(BIN)/python -m tests.gpu $(if $(TOY),--toy) $(addprefix --only ,$(ONLY))

# Check style, types, and which part imports which
lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Write the references in docs/reference/ and the playground's image anew
docs: setup-dev
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.avatars_image
	$(BIN)/python -m docs.screenshot

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: say make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.base: pyproject.toml | $(VENV)/.python
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.triton: $(VENV)/.base
	$(BIN)/pip install --quiet --editable '.[triton]'
	@touch $@

# onnxruntime, which the base asks for, lies over onnxruntime-gpu: they are one folder.
$(VENV)/.gpu: $(VENV)/.base
	$(BIN)/pip install --quiet --editable '.[gpu]'
	$(BIN)/pip install --quiet --force-reinstall --no-deps onnxruntime-gpu
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.base $(VENV)/.triton
