# `make test` and `make report` each take a machine with only Python >= 3.11 to their result.
PYTHON ?= python3
# CUDA 13 wants driver 580 or newer; older drivers: make report CUDA=12
CUDA ?= 13
VENV ?= .venv
# LOCKED=1 installs exactly what .ci/requirements.txt has, as CI does; else the newest that fit
LOCKED ?=
BIN := $(VENV)/bin
# as old as the last install: a change of pyproject.toml, the version or CUDA= installs again
STAMP := $(VENV)/installed-cu$(CUDA)
# worksteal: a test of 15 s at the end of one queue does not keep the other worker waiting
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

.PHONY: test test-times torch smoke report docs lint sanitize random faults mutate rust fuzz kills \
	slow site links second-front-end notebook lock clean

test: $(STAMP)
	$(PYTEST)

# the same, and what it costs: CPU seconds by file and by test
test-times: $(STAMP)
	$(PYTEST) --cpu-times

# what is left out of every run: all combinations, whole spaces and models; hours
slow: $(STAMP)
	nice -n 10 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "slow and not gpu"

# what the tests of ferrum_numba.torch need, without which they are skipped; torch as built for CPUs
torch: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0+cpu" transformers

# whether an installation works: for another Python, make smoke VENV=.venv-3.13 PYTHON=python3.13
smoke: $(STAMP)
	$(BIN)/ferrum-numba doctor
	$(PYTEST) tests/cli tests/compile tests/interpreter tests/docs tests/test_packaging.py

report: $(STAMP)
	$(BIN)/ferrum-numba report

# the pages and the API as a site in build/site, static files, and looked at where there is a Chromium;
# what LOCKED=1 installs has the extra `docs` already
# -E: pages are read again, because what reads them may have changed
SPHINX := $(BIN)/python -m sphinx -q -E -j 2 -c docs -d build/doctrees
docs: $(STAMP)
ifeq ($(LOCKED),)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
endif

site: docs
	rm -rf build/site
	$(SPHINX) -W --keep-going . build/site
	$(BIN)/python -m pytest -q -n 0 tests/docs/test_site.py

# links to other sites, which CI does not follow
links: docs
	$(SPHINX) -b linkcheck . build/links

# mypy cannot see the mapped folders through an editable install, so it reads a plain one; what is
# built goes before and after it, because setuptools would install modules that were deleted since
BUILT := build/lib build/bdist.* build/typecheck
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(BUILT)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/typecheck .
	cd build/typecheck && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p ferrum_numba
	rm -rf $(BUILT)

# on a GPU, outside CI: compute-sanitizer over every kernel, and random problems on every design
sanitize: $(STAMP)
	$(BIN)/python -m ferrum_numba.perf.sanitize

random: $(STAMP)
	$(BIN)/python -m ferrum_numba.perf.random_problems --count 20000

# faults planted in copies of the kernels, and which of them `check` finds: docs/reliability.md#races
faults: $(STAMP)
	$(BIN)/python -m ferrum_numba.perf.faults

# the kernels' device code changed in one place at a time: docs/reliability.md#mutants; some 20 minutes
mutate: $(STAMP)
	nice -n 10 $(BIN)/python -m ferrum_numba.perf.mutate

# the example that loads an export; needs cargo and its crates
rust:
	cargo check --manifest-path examples/rust/Cargo.toml

# a million mutated files for every reader, in one process: some hours; FUZZ=N for another number
FUZZ ?= 1000000
fuzz: $(STAMP)
	nice -n 10 $(BIN)/python tests/fuzz/fuzz.py --executions $(FUZZ)

# 200 commands of each kind killed at any time, and writers of every file and folder
kills: $(STAMP)
	nice -n 10 $(BIN)/python -m pytest -q -n 0 tests/test_whole.py tests/tune/test_killed.py tests/cli/test_kills.py

# whether NVIDIA's successor of numba-cuda can compile these kernels yet: docs/hardware.md#second
second-front-end:
	$(PYTHON) .ci/second_front_end

# run the notebooks of docs/notebooks and keep what they show; tests say when one is stale
notebook: $(STAMP)
	$(BIN)/python .ci/notebooks

# what CI installs, with hashes, for every Python and system: after a change of pyproject.toml
lock: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		--extra cu13 --extra sass --extra dev --extra docs \
		--custom-compile-command "make lock" \
		--upgrade pyproject.toml --output-file .ci/requirements.txt

clean:
	rm -rf .venv .venv-* build report *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml setup.py ferrum_numba/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"ferrum-numba needs Python 3.11 or newer; " + sys.executable + " is " + \
		sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(LOCKED),)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cu$(CUDA),sass,dev]"
else
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		-r .ci/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
endif
	touch $@
