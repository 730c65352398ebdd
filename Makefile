# Everything a developer does, on a bare machine: each target does the set-up it needs, once.
#
#   make demo    train two scenarios with Newton-CG, Adam and SGD; results in out/demo
#   make test    the tests
#   make check-layers  products through every layer and operation, against finite differences (about 3 minutes)
#   make check-native  the CUDA engine on the CPU, under sanitizers, and with seeded faults (about 5 minutes)
#   make gpu-check     on a machine with a GPU: tests, sanitizers, benchmark, in 8 minutes (without a GPU: error 3)
#   make gpu-check-tf  the TensorFlow op on a GPU: make gpu-check-tf TENSORFLOW=tensorflow-cuda
#   make lint    ruff, mypy, clang-format
#   make bench   the kernels against memory bandwidth and other libraries; results in out/kernels (about 10 minutes)
#   make build   build the native core and the TensorFlow op again
#
# Settings: PYTHON (the interpreter that makes .venv), TENSORFLOW (the extra to install: tensorflow-cpu, tensorflow, or
# tensorflow-cuda, which brings CUDA's libraries),
# NCG_CUDA (AUTO, ON, OFF), CUDAARCHS (CUDA architectures, as CMake takes them: "90-real;120"), JOBS (processes that run
# the tests).
PYTHON ?= python3
TENSORFLOW ?= tensorflow-cpu
NCG_CUDA ?= AUTO
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc bindings cmake -type f)
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help build demo test check-layers check-native lint format bench clean
help:
	@sed -n '2,/^PYTHON/p' Makefile | sed -n 's/^# \{0,1\}//p'

# The tools and packages; changes when pyproject.toml names others.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing TensorFlow and the tools into $(VENV) (once, about 2 GB) ..."
	$(BIN)/python .ci/requirements.py $(TENSORFLOW) scenarios dev > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	@# By itself: it names the TensorFlow wheel with GPU libraries as a dependency, and has TensorFlow's versions.
	$(BIN)/python -m pip install --quiet --no-deps "tf-keras==$$($(BIN)/python .ci/tensorflow-minor.py).*" \
	  || echo "No tf-keras for this TensorFlow: its tests are skipped."
	touch $@

# Core and op, into the environment; Python files are used where they stand.
$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	@echo "Building the native core and the TensorFlow op ..."
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps \
	  -C cmake.define.NCG_CUDA=$(NCG_CUDA) -C cmake.define.NCG_TENSORFLOW=ON --editable .
	touch $@

build:
	rm -f $(VENV)/.built
	$(MAKE) $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/ncg-cuda compare reg-diabetes cnn-digits --seeds 3 --out out/demo

test: $(VENV)/.built
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check-layers: $(VENV)/.built
	$(BIN)/python -m pytest -m slow -n $(JOBS)

check-native: $(VENV)/.built
	$(BIN)/python .ci/requirements.py native > $(VENV)/native.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/native.txt
	$(BIN)/python -m pytest -m native

.PHONY: gpu-check gpu-check-tf
# With the Python at hand, PYTHON, and without the virtual environment: nothing is downloaded or installed.
gpu-check:
	$(PYTHON) tests/gpu/check.py

gpu-check-tf: $(VENV)/.built
	$(BIN)/python tests/gpu/check_tensorflow.py

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc bindings tests -name '*.h' -o -name '*.cpp' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

format: $(VENV)/.built
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(shell find csrc bindings tests -name '*.h' -o -name '*.cpp' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

bench: $(VENV)/.built
	$(BIN)/ncg-cuda bench kernels --out out/kernels

clean:
	rm -rf build $(VENV)/.built
