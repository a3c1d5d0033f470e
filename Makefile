# Each of these works as the first command in a fresh clone: set-up comes first and is quick when nothing is to do.

PYTHON ?= python3
RUNS ?= 1
RESULTS ?=
RELEASE ?=
BIN := .venv/bin
SUPPLY := .venv-supply
SBOM ?= dist/sbom.cdx.json
SBOM_CHECK ?= --validate
AUDIT := dist/audit
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo up test chaos bench bench-check bench-capacity bench-scale bench-console \
	lint format contracts lock sbom audit environment servers-for-tests

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Make .venv and get PostgreSQL and RabbitMQ, if they are not there
	@$(PYTHON) podium/bootstrap.py --servers run

demo: setup ## Start the whole system with sample agents, show what it does, end
	@$(BIN)/podium demo

up: setup ## Start the whole system and stay, at http://127.0.0.1:8080
	@$(BIN)/podium up

# Whatever the shell says, the modules of the tests are compiled once and not by each process of each run.
test: servers-for-tests ## Run every test against real servers
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: setup ## Measure Podium beside its peers, 6 minutes (RUNS=3; RESULTS=name for name.json and .svg; RELEASE=wheel)
	@$(BIN)/python -m tests.benchmarks --runs $(RUNS) $(if $(RESULTS),--results $(RESULTS)) $(if $(RELEASE),--release $(RELEASE))

bench-check: setup ## Compare with docs/benchmarks.json: 3 minutes on a quiet machine, or RESULTS=name of a result
	@$(BIN)/python -m tests.benchmarks.check $(if $(RESULTS),--results $(RESULTS:.json=).json)

bench-capacity: setup ## Measure what work costs, and two processes beside one, 4 minutes (RESULTS=name for name.json)
	@$(BIN)/python -m tests.benchmarks.capacity $(if $(RESULTS),--results $(RESULTS))

bench-scale: setup ## Measure reads and promotes on a million deployments: some minutes
	@$(BIN)/python -m tests.benchmarks.scale

bench-console: setup ## Measure the console with 10,000 agents, and with 500 open pages: some minutes
	@$(BIN)/python -m tests.benchmarks.console

chaos: servers-for-tests ## Kill, stop and starve everything, at length: a quarter of an hour
	@CHAOS=long $(BIN)/pytest -n 0 -s -v tests/chaos tests/integration/api/test_generated_with_keys.py

lint: environment ## Check style, types and the direction of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: environment ## Format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

contracts: environment ## Write contracts/asyncapi.json and contracts/schemas anew from the models
	@$(BIN)/python -m podium.asyncapi

lock: environment ## Choose the newest allowed versions and write the lock files
	$(LOCK) -o requirements.lock
	$(LOCK) --extra otel -c requirements.lock -o requirements-otel.lock
	$(LOCK) --extra otel --group dev -c requirements-otel.lock -o requirements-dev.lock
	$(BIN)/uv pip compile --group build --universal --generate-hashes --python-version 3.11 \
		-c requirements-dev.lock -o requirements-build.lock
	$(BIN)/uv pip compile --group supply --universal --generate-hashes --python-version 3.11 -o requirements-supply.lock
	$(BIN)/uv pip compile tests/sdk/requirements.in --universal --generate-hashes --python-version 3.12 \
		-o requirements-sdk.lock
	$(BIN)/uv pip compile tests/sdk/requirements-mcp2.in --universal --generate-hashes --python-version 3.11 \
		-o requirements-mcp2.lock

sbom: $(SUPPLY)/installed ## Write what requirements.lock pins as CycloneDX, the same bytes each time (SBOM=file)
	@mkdir -p $(dir $(SBOM))
	@PYTHONWARNINGS=ignore $(SUPPLY)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --mc-type application \
		--spec-version 1.6 --output-reproducible $(SBOM_CHECK) --output-format JSON --output-file $(SBOM)
	@echo "$(SBOM) lists what requirements.lock pins."

audit: $(SUPPLY)/installed ## Look for known vulnerabilities of what requirements.lock pins; asks pypi.org
	@mkdir -p dist
	@rm -f $(AUDIT).json $(AUDIT).log
	@$(SUPPLY)/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off \
		--format json --output $(AUDIT).json 2> $(AUDIT).log || { \
			test -s $(AUDIT).json || { \
				echo "make audit: NOTHING WAS CHECKED, pypi.org cannot be asked; $(AUDIT).log says why." >&2; exit 3; }; \
			echo "make audit: vulnerabilities are known; $(AUDIT).json lists them." >&2; exit 1; }
	@echo "No vulnerability of what requirements.lock pins is known."

# uv takes seconds; pip knows settings that uv does not read.
$(SUPPLY)/installed: requirements-supply.lock | environment
	@$(BIN)/python -m venv --clear --without-pip $(SUPPLY)
	@$(BIN)/uv pip install --quiet --python $(SUPPLY)/bin/python --require-hashes -r requirements-supply.lock || \
		$(BIN)/python -m pip --python $(SUPPLY)/bin/python install --quiet --require-hashes -r requirements-supply.lock
	@touch $@

environment:
	@$(PYTHON) podium/bootstrap.py --servers none

servers-for-tests:
	@$(PYTHON) podium/bootstrap.py --servers test
