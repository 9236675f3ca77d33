# Everything from a fresh clone: `make demo` and `make test` do all set-up themselves. Needs Linux, Python 3.11 or newer,
# git and make; no root, no account. Paths here are relative, so that the clone may lie in a path with a space.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The first of these that is 3.11 or newer; `make PYTHON=/path/to/python3 …` names another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c 'import sys; print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null),$(p))))
BIN := .venv/bin
RUN := $(BIN)/python -m
READY := .venv/ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test lint bench soak docs clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## make .venv and install everything into it (done by itself when needed)

# The stamp is newer than pyproject.toml when the environment fits it; a second call is instant.
# torch comes first and by itself: where a build without CUDA is on offer it is taken before anything pins another.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Sheaf needs Python 3.11 or newer, and found none: install it, or name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sheaf needs Python 3.11 or newer; $(PYTHON) is older" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || { rm -rf .venv; echo "python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(RUN) pip install --quiet "torch==2.13.0"
	$(RUN) pip install --quiet --editable ".[dev]"
	@touch $(READY)

demo: $(READY) ## real scattered data to a trained, traced model: about 8 minutes
	$(RUN) sheaf demo

# A file at a time on each core. Some tests measure time: what fails beside others is run once more, alone.
test: $(READY) ## the tests, without the long ones
	$(RUN) pytest -m "not soak" --numprocesses logical --maxprocesses 4 --dist loadfile || \
	{ test $$? = 1 && $(RUN) pytest -m "not soak" --last-failed --last-failed-no-failures none; }

soak: $(READY) ## the long tests
	$(RUN) pytest -m soak

lint: $(READY) ## style, formatting, types
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright --threads 2

bench: $(READY) ## every figure of the docs, one after another
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

docs: $(READY) ## the pages of docs/ as a site in site/
	$(RUN) pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

clean: ## remove what make has made, but not the demo's folder
	rm -rf .venv site dist .pytest_cache .ruff_cache .hypothesis
