# make demo   the main job on the embedded model (sets everything up first)
# make test   the tests; make test-fast the quick ones, at each save; make test-long those that take
#             minutes; make test-browser opens the report in Chromium, which it gets first;
#             make test-wheel tests what users install;
#             make test-tools the exports, with the tools that read them; make test-oldest the
#             oldest supported versions; make test-hosts Axolotl and ms-swift, in .hosts/
# make docs   the site in docs/_build/html, its notebooks run; no network
# make stress kills, bad input, hostile text, properties: one line a class, under an hour
# make fuzz   the readers of files, guided by coverage, for an hour
# make check  formatting, types, floors
# make setup  the environment in .venv, at once the second time

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.moorline-installed

export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test test-fast test-long test-browser test-tools test-wheel test-oldest test-hosts stress fuzz docs wheel check format models clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tune,docs,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/moorline demo $(DEMO)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder \
		-m "not long and not browser" $(TESTS)

test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long $(TESTS)

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 \
		-m "not slow and not lengthy and not browser" $(TESTS)

# The oldest supported versions, in an environment of their own; gets several gigabytes the first time.
OLDEST := .venv-oldest

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[tune]' \
		beartype hypothesis pytest pytest-timeout pytest-xdist
	# where there is no GPU, Triton takes its place in TRL's loss and finds none
	command -v nvidia-smi >/dev/null || $(OLDEST)/bin/python -m pip uninstall --quiet --yes triton
	touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -o addopts=--strict-markers -o filterwarnings=default -q \
		-n auto --maxprocesses 4 -m "not slow and not browser" \
		tests/method tests/chat tests/test_trainer.py $(TESTS)

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

# The wheel that was built from the sdist, tested in an environment of its own, with no src/ in reach.
test-wheel: wheel
	.ci/wheel $(PYTHON)

# Inspect and lm-eval, in an environment of their own (.venv-tools).
test-tools:
	.ci/tools $(PYTHON)

test-browser: $(STAMP)
	.ci/browser
	$(BIN)/python -m pytest -m browser tests

# Kills five jobs again and again; then the tests of bad input, hostile text and properties.
stress: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/stress.py --kills 63 --minutes 50 --pytest $(STRESS)

# Every reader of files from outside, guided by coverage: an hour of processor time in all.
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/fuzz/readers.py --atheris --minutes 60 $(FUZZ)

# Each host in an environment of its own, with the versions that it pins.
test-hosts: $(STAMP)
	.ci/hosts

docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet \
		docs docs/_build/html

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rebuilds the embedded models, prompts and their hashes; says how long it took.
models: $(STAMP)
	$(BIN)/python -m moorline.embedded.recipe

clean:
	rm -rf $(VENV) .hosts docs/_build moorline-demo moorline-audit
