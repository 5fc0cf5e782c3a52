# make demo: simulate a scan and reconstruct it.   make test: lint, types, tests, on the installed package.
# Both set up .venv in the checkout from constraints.txt; stamps make a second call quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find models gadgets sim pipelines -type f -not -name '*.pyc')
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# the tests must see the installed package, whatever the caller's shell points at
CLEAN := env -u PYTHONPATH -u MYPYPATH

.PHONY: install demo test clean

install: $(VENV)/.package

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else \
		f"constraints.txt is made for Python 3.11 and 3.12, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The dependencies: the package is installed along, which is how pip learns what they are.
$(VENV)/.dependencies: constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install -c constraints.txt setuptools '.[test,train,dicom,seq]'
	@touch $@

# The package itself, not editable. A build/ of before would carry files that the sources no longer have.
$(VENV)/.package: $(VENV)/.dependencies $(SOURCES) README.md
	rm -rf build scanprior.egg-info
	$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	rm -rf build scanprior.egg-info
	@touch $@

demo: $(VENV)/.package
	$(CLEAN) $(BIN)/python -m scanprior.pipelines.demo demo

test: $(VENV)/.package
	$(BIN)/ruff check .
	cd $(VENV) && $(CLEAN) bin/mypy --config-file ../pyproject.toml \
		-p scanprior.models -p scanprior.gadgets -p scanprior.sim -p scanprior.pipelines
	@# one thread: with more, the first image of a process may differ in its last bit from the others (a known defect)
	SCANPRIOR_INSTALLED=1 OMP_NUM_THREADS=1 $(CLEAN) $(BIN)/pytest $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build scanprior.egg-info demo .pytest_cache .ruff_cache .hypothesis
