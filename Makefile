# The two commands: `make train` and `make test`. Both make .venv on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
NATIVE_SOURCES := setup.py $(shell find csrc)

.PHONY: train test bench lint gpu clean

train: $(VENV)/installed
	$(BIN)/edgepop train

test: $(VENV)/installed
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

lint: $(VENV)/ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Editable: Python edits count at once; an edit of a native source, or of what is required, installs anew.
$(VENV)/installed: pyproject.toml constraints.txt $(NATIVE_SOURCES) | $(BIN)/python
	$(PIP) --editable '.[train,test,bench]'
	@touch $@

$(VENV)/ruff: constraints.txt | $(BIN)/python
	$(PIP) ruff
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Without network and without .venv: the torch that $(PYTHON) has, the module built in place.
gpu:
	@$(PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('make gpu needs a CUDA device, and torch sees none here.')"
	$(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m pytest -m gpu
	@mkdir -p benchmarks/results
	$(PYTHON) -m pytest benchmarks/ --benchmark-only --benchmark-json="benchmarks/results/$$($(PYTHON) -c \
	    "import torch; print(torch.cuda.get_device_name().replace(' ', '-').lower())").json"

clean:
	rm -rf build dist *.egg-info $(VENV) edgepop_kernels/_native*.so
