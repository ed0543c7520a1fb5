# The two commands: `make train` and `make test`. Both make .venv on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
NATIVE_SOURCES := setup.py $(shell find csrc)

.PHONY: train test bench accuracy lint gpu clean

train: $(VENV)/installed
	$(BIN)/edgepop train

test: $(VENV)/installed
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

accuracy: $(VENV)/installed
	$(BIN)/python benchmarks/accuracy.py

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
	@$(PYTHON) -c "$$GPU_NAME" >/dev/null
	$(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m pytest -m gpu
	$(PYTHON) -m pytest benchmarks/ --benchmark-only --device cuda \
	    --results "benchmarks/results/$$($(PYTHON) -c "$$GPU_NAME").json"

define GPU_NAME
import importlib.util, sys
if importlib.util.find_spec("torch") is None:
    sys.exit("make gpu needs torch, and $(PYTHON) has none")
import torch
if not torch.cuda.is_available():
    sys.exit("make gpu needs a CUDA device, and torch sees none")
print(torch.cuda.get_device_name().replace(" ", "-").lower())
endef
export GPU_NAME

clean:
	rm -rf build dist *.egg-info $(VENV) edgepop_kernels/_native*.so
