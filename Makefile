# Everything sets itself up: a machine with Python 3.11+ is enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Large arrays come and go at every training step. These glibc settings keep
# their memory, in huge pages, instead of giving it back each time: training is
# up to 1.5 times faster on a CPU. Other systems ignore them.
FAST = GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184

.PHONY: quickstart test soak lint format docs requirements clean

quickstart: $(VENV)/.run $(VENV)/.native
	$(FAST) $(BIN)/python -m deepemd_jax.main --config=configs/quickstart.py

test: $(VENV)/.test $(VENV)/.native lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not soak"

# With XLA's optimizations, which the short tests do without: see conftest.py.
soak: $(VENV)/.test $(VENV)/.native
	XLA_FLAGS= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into docs/_build/html. It runs the notebooks; a warning, and a link
# within the site that leads nowhere, is an error.
docs: $(VENV)/.docs $(VENV)/.native
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=python3.12, say"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.run requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# The network simplex in C++. Without a compiler POT's serves.
NATIVE = deepemd_jax/emd/native
$(VENV)/.native: $(VENV)/.run $(wildcard $(NATIVE)/*.cc $(NATIVE)/*.h $(NATIVE)/build.py)
	$(BIN)/python -m deepemd_jax.emd.native.build
	@touch $@

# The tested set of versions, one file for Python 3.11 to 3.13.
requirements: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make requirements" --extra train \
	  pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make requirements" --extra test -c requirements.txt \
	  pyproject.toml -o requirements-test.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make requirements" --extra docs -c requirements-test.txt \
	  pyproject.toml -o requirements-docs.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis docs/_build
