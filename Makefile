# Two commands do everything: `make demo` and `make test`. Both need Python >= 3.11 only.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/soccer-ball

.PHONY: demo test test-fast table2 matrix torture lint docs audit

demo: .venv/demo
	$(BIN)/python -m erase.train --config configs/emoji_soccer_ball.py --workdir $(DEMO)

# Tests start many processes that import the same modules, so bytecode is written even where the
# environment forbids it.
test: .venv/test
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# For work in between; `make test` and `make docs` show that all is well.
test-fast: .venv/test
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

# The paper's Table 2 on the small model, in minutes on 2 idle cores; `make table2 FULL=1` is
# the full set, for a GPU. Interrupted, it continues. The table is in runs/table2/table.md.
table2: .venv/demo
	$(BIN)/python -m benchmarks.table2.run $(if $(FULL),--full)

# Fast tests on every Python and JAX that pyproject.toml promises, one by one; `make matrix` again
# continues. `make matrix CELL='--python 3.13 --jax lowest'` runs one.
matrix:
	$(PYTHON) -m benchmarks.matrix $(CELL)

# Kills, damages and starts twice what should survive it; under an hour on 2 cores. Interrupted, it
# continues with the part that was running. `make torture PARTS='--scale 0.05 --parts kills'` is a short one.
torture: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.torture.run $(PARTS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/codespell
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive flux_jax erase convert benchmarks recipes configs

# The documentation site, in build/site. Runs the quickstart notebook and fails where it does not do
# what it says. The site's pictures need Chromium (apt-get install chromium).
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m docs.site.check_links build/site

# Asks for known faults of what is installed; needs the network, so that it is no part of `lint`.
audit: .venv/test
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

.venv/demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

.venv/docs: .venv/demo
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@
