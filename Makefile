# make demo [PROMPT="..." OUT=x.mp4]   installs into .venv and makes a video
# make test                            lint, types and tests, as CI runs them; those of PostgreSQL and of Studio
#                                      run where they can (Debian: apt-get install postgresql chromium)
# make venv | bench
.DEFAULT_GOAL := demo
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a green cone falls to the floor beside a purple cylinder
OUT ?= demo.mp4
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The client that sends JSON; the newest, which the tests use as well, sends forms.
OLDER := openai==2.26.0
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test venv bench

demo: $(VENV)/.installed
	$(BIN)/worldline generate $(call quoted,$(PROMPT)) -o $(call quoted,$(OUT)) --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

venv: $(VENV)/.installed-dev

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.generate

# A prompt may hold an apostrophe: close the quote, escape it, open it again.
quoted = '$(subst ','\'',$(1))'

# torch first, at the pinned version: nothing that follows may then choose another one.
$(VENV)/.installed: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/openai-2 $(OLDER)
	touch $@
