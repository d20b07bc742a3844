# afterstroke: `make demo` shows it working, `make test` checks it; both install what is missing into .venv.

# the first of these that is there; the lock file was made with 3.11
PYTHON ?= $(or $(shell command -v python3.11 || command -v python3.12 || command -v python3.13),python3.11)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-slow lint lock clean

demo: $(READY)
	$(BIN)/python -m demo.dataset demo-data
	$(BIN)/python run.py demo-data demo-out participant --work-dir demo-work
	$(BIN)/python run.py demo-data demo-out group
	$(BIN)/python -m demo.score demo-data demo-out

# a file of tests stays in one process: tests of one file share what is long to make; tests/conftest.py orders files
test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

# minutes of computation, on real scans where they are at hand (AFTERSTROKE_TEST_DATA)
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check bids_app research demo benchmarks tests run.py

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[test]"
	touch $@

# rewrites the lock file from what pyproject.toml asks for today
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "torchvision==0.28.0"
	build/lock/bin/pip install --quiet --disable-pip-version-check ".[test]"
	build/lock/bin/pip freeze --exclude afterstroke | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) build demo-data demo-out demo-work
