# Sets up .venv inside the checkout, builds the package there and runs it. `make` lists the targets.
# Needed: python3 >= 3.10 with venv, a C++ compiler, GNU make. A second run repeats only what is stale.

VENV := .venv
PYTHON ?= python3
ARGS ?=
OUT ?= out/gpu
# Of the tests. Each has two threads besides, which must not turn while they wait: the cores are
# taken. Each holds about 2 GiB of memory.
WORKERS ?= $(shell nproc | awk '{ print ($$1 < 8 ? $$1 : 8) }')
# Handed to pip as it stands, where .venv has no torch that the package accepts. Where there is no
# GPU, this one version is the smallest choice: pip prefers its CPU build where it is configured to
# find one (a `+cpu` version), while a range could resolve to a newer build with all of CUDA.
ifneq ($(filter GPU,$(shell nvidia-smi -L 2>/dev/null)),)
TORCH ?= 'torch>=2.11,<2.14'
else
TORCH ?= torch==2.13.0
endif

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
LOG := build/install.log
SUITES := resnext50 resnext101_32x8d resnext101_64x4d regnet depthwise widths
LAYOUTS := channels_last contiguous
# [build-system] requires of pyproject.toml: without build isolation pip leaves them to us.
BUILD_REQUIREMENTS := 'setuptools>=77.0.3' 'ninja>=1.11'
# torchvision and timm come without their dependencies, which would bring another torch.
PEERS := 'torchvision>=0.26,<0.29' 'timm>=1.0,<2'
# The extra [triton] of pyproject.toml: torch for GPUs brings it, torch for CPUs does not.
TRITON := 'triton>=3.6,<4'
PEERS_REQUIREMENTS := PyYAML huggingface-hub safetensors

# Folders are listed too: their times tell of removed files.
BUILD_INPUTS := setup.py pyproject.toml resnext_kernels/version.py $(shell find csrc)
CXX_SOURCES := $(filter %.h %.cpp %.cuh %.cu,$(shell find csrc tests/cuda_sim))

.PHONY: help install demo test bench gpu tuned docs check clean distclean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: PYTHON (now: $(PYTHON)), TORCH (what pip installs as torch, now: $(TORCH)),"
	@echo "ARGS (handed to the demo, to pytest or to the benchmark; the stages of gpu, all where"
	@echo "none is named), OUT (the results of gpu), WORKERS (processes that run the tests, now:"
	@echo "$(WORKERS))."

install: $(VENV)/.installed ## set up .venv: torch, the built package, its tools

demo: install ## run ResNeXt-50 on photographs with and without the kernels, then time them
	$(PY) -m resnext_kernels demo $(ARGS)

test: install $(VENV)/.peers $(VENV)/.triton ## run the tests, WORKERS files at a time
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	    $(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

bench: install ## time the kernels on the layers of ResNeXt-50
	$(PY) -m resnext_kernels bench $(ARGS)

gpu: ## build, test and time the GPU kernels on this machine's GPU, with $(PYTHON)'s own torch
	$(PYTHON) benchmarks/gpu/run.py $(OUT) $(ARGS)

tuned: install ## measure anew what "auto" chooses by, and write it into the package
	@for suite in $(SUITES); do for layout in $(LAYOUTS); do \
	    $(PY) -m resnext_kernels bench --suite $$suite --backend cpu aten --layout $$layout \
	        --json build/tuned/$$suite-$$layout.json; \
	done; done
	$(PY) benchmarks/update_tuned.py \
	    $(foreach suite,$(SUITES),$(LAYOUTS:%=build/tuned/$(suite)-%.json))

docs: install ## write the tables of README.md and docs and the plots anew from committed results
	$(PY) benchmarks/update_readme.py
	$(PY) benchmarks/update_plots.py
	$(PY) benchmarks/update_predictions.py

check: install ## check style and types: ruff, clang-format, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(PY) -m mypy

clean: ## remove what was built, keep .venv
	rm -rf build dist *.egg-info resnext_kernels/*.so $(VENV)/.installed

distclean: clean ## remove .venv too
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python >= 3.10 is needed, as $(PYTHON). Name another: make PYTHON=python3.12"; exit 1; }
	@echo "== virtual environment $(VENV), of $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) has no working venv module (Debian, Ubuntu: package python3-venv)"; exit 1; }
	@if $(PY) -c 'import torch as t; raise SystemExit(not (2, 11) <= t.__version__ < (2, 14))' \
	    2>/dev/null; then echo "== torch: the one in $(VENV) stays"; \
	  else echo "== torch: pip install $(TORCH)"; $(PIP) install $(TORCH); fi
	@$(PIP) install -q $(BUILD_REQUIREMENTS)
	@touch $@

# Editable, so that what runs is this checkout. FORCE: the library was removed by hand.
$(VENV)/.installed: $(VENV)/.torch $(BUILD_INPUTS) $(if $(wildcard resnext_kernels/_cpu.so),,FORCE)
	@echo "== package: pip install -e . (minutes the first time; log in $(LOG))"
	@mkdir -p $(dir $(LOG))
	@$(PIP) install -v --no-build-isolation -e '.[bench,demo,test,dev]' > $(LOG) 2>&1 || { \
	  tail -n 60 $(LOG); exit 1; }
	@grep -o 'resnext_kernels: .*' $(LOG)
	@touch $@

$(VENV)/.peers: $(VENV)/.torch
	@echo "== torchvision and timm, which some tests compare with"
	@if $(PIP) install -q --no-deps $(PEERS) && $(PIP) install -q $(PEERS_REQUIREMENTS); \
	  then touch $@; else echo "== not to be had: those tests will be skipped"; fi

$(VENV)/.triton: $(VENV)/.torch
	@echo "== triton, whose kernels the tests interpret and compile for GPUs that need not be there"
	@if $(PIP) install -q $(TRITON); \
	  then touch $@; else echo "== not to be had: those tests will be skipped"; fi
