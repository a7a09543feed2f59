# make run   set up and train            make test       set up and test (no GPU, under half an hour on two cores)
# make setup only set up                 make test-slow  the tests that take minutes each
# make run ARGS="--from-scratch"         ... with arguments of `sb3-tgrpo train`
# make results  compute the figures of docs/results again from its record, and compare
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-slow lint results setup gl clean

run: setup
	$(BIN)/python -m sb3_tgrpo train $(ARGS)

test: setup lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

test-slow: setup
	$(BIN)/python -m pytest -q -m slow tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: setup
	$(BIN)/python scripts/results.py

setup: $(STAMP) gl

# hf-libero comes without its own requirements: robomimic and hf-egl-probe would bring torchvision, cmake and a compiler,
# none of which libero.libero uses.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) scripts/make_venv.py $(VENV)
	@echo "Installing into $(VENV): about 3 GB, a minute or more"
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --prefer-binary -c constraints.txt -e ".[all,dev]"
	$(BIN)/python -m pip install -qq --no-deps hf-libero==0.1.4
	touch $@

# Software OpenGL, to render without a display. Installed where that is allowed; the simulator says what is missing otherwise.
gl:
	@$(PYTHON) scripts/install_gl.py

clean:
	rm -rf $(VENV) build dist *.egg-info
