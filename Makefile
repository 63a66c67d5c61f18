# Two commands are enough to begin with: `make demo` and `make test`. Each does its own set-up.
SHELL := /bin/bash
# Containers often forbid Python to keep what it compiled: each process would compile all it imports once more, three seconds
# for each Turnout that is started, and tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
# Set-up comes before building, building before running.
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Passed on to the program behind a target: make demo ARGS="--clients 200 --json"
ARGS ?=
BIN := .venv/bin
# Compiled files; a change in one of them is compiled before anything runs.
COMPILED := $(shell find protocols proxy -name '*.pyx' -o -name '*.pxd') protocols/wire.py $(wildcard protocols/*/tracker.py)
SOURCES := protocols proxy

# Tests wait for servers more than they compute. Those of one file stay together, for they share servers. In their own order:
# those through whole servers, few and slow, would else come last and leave nothing to do beside them.
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder -n $(shell expr $$(nproc) + 1)

# The demo on MariaDB needs a server that the one on PostgreSQL does not.
DEMO_SETUP := demo$(if $(findstring mysql,$(ARGS)),-mysql)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 14

.PHONY: demo
demo: .venv/.$(DEMO_SETUP) .venv/.built ## two servers, a load, live switches; ARGS="--protocol mysql --clients 200 --json"
	@$(BIN)/python -m proxy demo $(ARGS)

.PHONY: test
test: .venv/.test .venv/.built ## all tests; the wire code compiled and as plain Python
	TURNOUT_READABLE=1 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) tests/protocols
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) $(ARGS)

.PHONY: soak
soak: .venv/.test .venv/.built ## long tests, then faults thrown at a Turnout under load; ARGS="--minutes 60"
	$(BIN)/python -m pytest -q -m soak --timeout 600
	$(BIN)/python -m tests.soak $(ARGS)

.PHONY: fuzz
fuzz: .venv/.test .venv/.built ## mutated conversations against parsers and live proxy; ARGS="--minutes 30 --seed 7"
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: lint
lint: .venv/.lint .venv/.built ## ruff, mypy, cython-lint, import rules; shellcheck where it is installed
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/mypy
	@PATH=$(CURDIR)/$(BIN):$$PATH cython-lint $(SOURCES)
	@$(BIN)/lint-imports --no-logo >.venv/.lint-imports.out || { cat .venv/.lint-imports.out; exit 1; }
	@if command -v shellcheck >/dev/null; then shellcheck tools/*.sh .ci/run; fi

.PHONY: bench
bench: .venv/.bench .venv/.built ## figures beside those of PgBouncer, HAProxy and bare C; ARGS="--quick" or "relay --quick"
	@$(BIN)/python -m bench $(ARGS)

.PHONY: docs
docs: .venv/.demo .venv/.built ## write the sample config and the reference again from the code
	$(BIN)/python -m docs.generate

.PHONY: site
site: .venv/.docs docs ## the documentation as a site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

.PHONY: image
image: ## a container image named turnout, with docker or podman
	@engine=$$(command -v docker || command -v podman) \
		|| { echo "make image needs docker or podman; neither is installed" >&2; exit 1; }; \
	"$$engine" build -t turnout .

.PHONY: clean
clean: ## remove all that was made here, .venv too
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) tests bench \( -name '*.so' -o -name '*.c' -o -name '__pycache__' \) -prune -exec rm -rf {} +

# --- set-up ---------------------------------------------------------------------------------------------------------

.venv/.demo .venv/.demo-mysql .venv/.lint .venv/.test .venv/.bench .venv/.docs: .venv/.%: pyproject.toml setup.py tools/setup.sh
	@tools/setup.sh $*
	@touch $@

.venv/.built: setup.py $(COMPILED)
	@$(BIN)/python setup.py -q build_ext -i
	@touch $@
