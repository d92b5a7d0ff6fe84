# Users need only `make demo` and `make test`; the other targets are for development.
# Each target first installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check

.PHONY: demo test slow torch lint types doctest docs bench board paths scale gpu smoke golden check dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/examples.stamp
	$(BIN)/python examples/train_spiking_digits.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

slow: $(VENV)/test.stamp  # run the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist worksteal

torch: $(VENV)/test.stamp $(VENV)/dev.stamp  # run the tests that compare with the installed torch
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $$(grep -rl --include='test_*.py' torch tests)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp $(VENV)/test.stamp
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -m '' --numprocesses auto --dist worksteal tests/test_types.py

doctest: $(VENV)/test.stamp
	$(BIN)/python -m pytest --doctest-modules braintools_optim

docs: $(VENV)/docs.stamp
	$(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/check_pages.py docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/benchmarks.stamp  # OUTPUT=benchmarks/results records the results for the docs
	$(BIN)/python -m benchmarks $(if $(OUTPUT),--output $(OUTPUT))

board: $(VENV)/benchmarks.stamp  # train small spiking networks by every optimizer, and record what is not recorded yet
	$(BIN)/python -m benchmarks.board

paths: $(VENV)/benchmarks.stamp  # record the paths of the optimizers on two functions for the docs
	$(BIN)/python -m benchmarks.paths --output benchmarks/results/paths.json

scale: $(VENV)/test.stamp  # compile updates for up to 512 devices, and record the memory that they take for the docs
	$(BIN)/python -m benchmarks.scale --output benchmarks/results/scale.json

gpu: $(VENV)/benchmarks.stamp  # measures nothing if jax finds no GPU
	$(BIN)/python -m benchmarks.gpu $(if $(OUTPUT),--output $(OUTPUT))

smoke: $(VENV)/test.stamp  # check that the benchmarks run
	$(BIN)/python -m benchmarks --smoke
	$(BIN)/python -m benchmarks.gpu --smoke
	$(BIN)/python -m benchmarks.scale --smoke

golden: $(VENV)/dev.stamp $(VENV)/test.stamp
	$(BIN)/python tests/golden/record.py
	$(BIN)/python tests/golden/record_schedules.py
	$(BIN)/python tests/golden/record_states.py

check: test slow lint types doctest docs

dist: $(VENV)/release.stamp  # build the archives of a release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) docs/_build

$(VENV)/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is required: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	touch $@

$(VENV)/%.stamp: $(VENV)/pip.stamp pyproject.toml
	@echo "Setting up $(VENV) for $* ..."
	$(PIP) --editable '.[$*]'
	touch $@
