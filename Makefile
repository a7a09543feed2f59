# make run    set up and train               make check    format, lint, types, tests of the algorithm: under a minute
# make test   set up and test, no GPU        make format   mend the layout of the code
# make docs   the documentation site         make test-slow  the tests that take minutes each
# make run ARGS="--from-scratch"             ... with arguments of `sb3-tgrpo train`
# make results  compute the figures of docs/results again from its record, and compare
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs_installed
SITE := build/site

.PHONY: run test test-slow check lint format type docs results setup venv gl clean

run: setup
	$(BIN)/python -m sb3_tgrpo train $(ARGS)

test: setup lint type
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

test-slow: setup
	$(BIN)/python -m pytest -q -m slow tests

# Types and tests side by side.
check: setup lint
	@$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not thorough" tests/algorithm tests/groups; tests=$$?; \
	wait $$types && exit $$tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup
	$(BIN)/mypy

# The site needs none of the packages that training needs.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir $(SITE)
	@echo "Open $(SITE)/index.html, or with search: python -m http.server -d $(SITE)"

results: setup
	$(BIN)/python scripts/results.py

setup: $(INSTALLED) gl

# hf-libero comes without its own requirements: robomimic and hf-egl-probe would bring torchvision, cmake and a compiler,
# none of which libero.libero uses.
$(INSTALLED): pyproject.toml constraints.txt | venv
	@echo "Installing into $(VENV): about 3 GB, a minute or more"
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --prefer-binary -c constraints.txt -e ".[all,dev]"
	$(BIN)/python -m pip install -qq --no-deps hf-libero==0.1.4
	touch $@

$(DOCS_INSTALLED): pyproject.toml constraints.txt | venv
	@$(BIN)/python -m pip install -qq -c constraints.txt $$($(BIN)/python scripts/requirements.py docs)
	@touch $@

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(BIN)/python -c "import pip" 2> /dev/null || $(PYTHON) scripts/make_venv.py $(VENV)

# Software OpenGL, to render without a display. Installed where that is allowed; the simulator says what is missing otherwise.
gl:
	@$(PYTHON) scripts/install_gl.py

clean:
	rm -rf $(VENV) build dist *.egg-info
