# `make demo` and `make test` need Python 3.11+ and nothing else; whatever they install stays in .venv.
#
#   PYTHON      the interpreter that .venv is made from
#   TORCH_SPEC  what pip is to install as torch, e.g. a wheel's path
#   PYTEST_ARGS what pytest is given by `make test`

PYTHON ?= python3
# Two processes of one thread each: on two cores faster than one process of two.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --no-compile --prefer-binary

# Torch comes first and by itself: asked for together with the rest, a CPU build on disk or on a mirror would lose to the
# newest CUDA build.
HAS_GPU := $(shell command -v nvidia-smi 2>/dev/null)
ifeq ($(HAS_GPU),)
TORCH_SPEC ?= torch==2.13.0
CONSTRAINTS := constraints-cpu.txt
EXTRAS := dev
else
TORCH_SPEC ?= torch>=2.11
CONSTRAINTS :=
EXTRAS := dev,gpu
endif

.PHONY: help demo test lint docs env headline clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo      compare the baseline with the fused engine on a real model, and write the report'
	@echo 'make test      every test, lint and type check'
	@echo 'make lint      ruff, mypy and the import rules alone'
	@echo 'make docs      the documents as a site, in site/'
	@echo 'make headline  the published figures: needs one H200'
	@echo 'make env       the environment alone, in .venv'
	@echo 'make clean     remove .venv and the caches; results/ and reports/ stay'

# Threads that wait must not spin: where another program has a core, a step would take many times as long.
demo test: export OMP_WAIT_POLICY ?= passive

FETCH = $(BIN)/python -m experiments.fetch smollm2-135m >/dev/null || echo 'fusebench: no real model: $(WITHOUT)' >&2
demo: WITHOUT = going on with seeded random weights of the same shape
test: WITHOUT = the tests that need one skip

demo: env
	@$(FETCH)
	$(BIN)/fusebench sweep experiment=demo
	$(BIN)/fusebench report experiment=demo
	@echo "demo: the report is $(CURDIR)/reports/demo/index.html"
	@if [ -t 1 ] && [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then \
	  xdg-open reports/demo/index.html >/dev/null 2>&1 || true; fi

test: env
	@$(FETCH)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory lint

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: the site is $(CURDIR)/site/index.html"

headline: env
	$(BIN)/fusebench sweep experiment=headline
	$(BIN)/fusebench trace experiment=headline
	$(BIN)/fusebench report experiment=headline
	$(BIN)/fusebench sweep experiment=offline
	$(BIN)/fusebench report experiment=offline

env: $(READY)

$(READY): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fusebench needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo 'env: making .venv (a few minutes the first time)'
	@$(PYTHON) -m venv .venv
	@echo 'env: $(TORCH_SPEC)'
	@$(INSTALL) '$(TORCH_SPEC)'
	@$(BIN)/python -c 'import triton' 2>/dev/null || [ -z '$(CONSTRAINTS)' ] || $(INSTALL) $(CONSTRAINTS:%=-r %)
	@echo 'env: fusebench and what it needs'
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
