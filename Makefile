# The two commands: `make train` and `make test`. Both make .venv on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
NATIVE_SOURCES := setup.py $(shell find csrc)

.PHONY: train test bench accuracy lint gpu gpu-sanitize clean

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

# Without network and without .venv: with the torch that $(PYTHON) has, installed into a folder of its own, from where
# everything runs. Under 8 minutes on 8 cores and more.
GPU := build/gpu
GPU_PYTEST := -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR)

gpu: $(GPU)/installed
	cd $(GPU) && $(PYTHON) -m pytest $(GPU_PYTEST) $(CURDIR)/tests -m gpu -n auto
	cd $(GPU) && $(PYTHON) -m pytest $(GPU_PYTEST) $(CURDIR)/benchmarks --benchmark-only --device cuda \
	    --results "$(CURDIR)/benchmarks/results/$$($(PYTHON) -c "$$GPU_NAME").json"

# Every kernel, with each allocation of its own so that a step out of it is seen.
SANITIZED := many_tiles or every_stride_phase or batches_of or all_layers_cold or stage_kernel or draws_the_reference

gpu-sanitize: $(GPU)/installed
	cd $(GPU) && PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
	    $(PYTHON) -m pytest $(GPU_PYTEST) $(CURDIR)/tests -m gpu -k "$(SANITIZED)"

$(GPU)/installed: pyproject.toml $(NATIVE_SOURCES) $(shell find edgepop_kernels -name '*.py' -o -name '*.json')
	@$(PYTHON) -c "$$GPU_NAME" >/dev/null
	rm -rf $(GPU)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --target $(GPU) .
	@touch $@

# The native module under ThreadSanitizer, on threads that it understands (tests/sanitize/openmp.cpp). GCC on Linux.
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
sanitize: $(VENV)/installed
	EDGEPOP_CUDA_ARCHS= EDGEPOP_CXXFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build_ext \
	    --build-temp build/thread --build-lib build/thread/lib
	g++ $(SANITIZE) -std=c++17 -fPIC -shared tests/sanitize/openmp.cpp -o build/thread/openmp.so
	LD_PRELOAD="$$(g++ -print-file-name=libtsan.so) $(CURDIR)/build/thread/openmp.so" setarch -R \
	    $(BIN)/python tests/sanitize/threads.py build/thread/lib/edgepop_kernels/_native*.so

define GPU_NAME
import importlib.util, sys
needed = "torch", "triton", "pytest", "xdist", "pytest_benchmark", "hypothesis", "pybind11"
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"make gpu needs {', '.join(missing)}, which $(PYTHON) lacks; PYTHON=... names another")
import torch
if not torch.cuda.is_available():
    sys.exit("make gpu needs a CUDA device, and torch sees none")
print(torch.cuda.get_device_name().replace(" ", "-").lower())
endef
export GPU_NAME

clean:
	rm -rf build dist *.egg-info $(VENV) edgepop_kernels/_native*.so
