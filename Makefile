# The two commands are `make run` and `make test`; both work on a fresh clone. `make` alone lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
export PYTHON
BIN := .venv/bin
ARCHITECTURE := tests/test_architecture.py

.PHONY: help run test check faults soak compose-test bench bench-all locales lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# exec: Ctrl-C and SIGTERM reach tidegate itself, whose exit status 0 after a clean stop is then make's.
run: ## install what is missing, start gateway and workers of three regions here; Ctrl-C stops them (PORT=8090: on that port)
	@requirements/install.sh run
	@exec $(BIN)/tidegate up $(if $(PORT),--port $(PORT))

test: ## install what is missing, then every check and every test
	@requirements/install.sh test
	@$(MAKE) --no-print-directory check
	@echo "==> Tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup # a core for each of the two

check: ## lint, format, types, import contracts, architecture tests
	@requirements/install.sh test
	@echo "==> ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "==> mypy" && $(BIN)/mypy
	@echo "==> import-linter" && $(BIN)/lint-imports
	@echo "==> architecture" && $(BIN)/python -m pytest -q $(ARCHITECTURE)

faults: ## the long form of the fault tests: 10,000 requests in a storm, 200 kills of each kind, 1,000 tamperings
	@requirements/install.sh test
	@FAULT_REQUESTS=10000 FAULT_KILLS=200 FAULT_POINTS=200 FAULT_TAMPERINGS=1000 \
		$(BIN)/python -m pytest -q -s tests/faults tests/audit/test_crash.py

compose-test: ## build, run, attack and take down docker-compose.yml; as root on Debian needs no Docker (FRESH=1: forgets caches)
	@requirements/install.sh test
	@exec $(BIN)/python -m tests.compose $(if $(FRESH),--fresh)

soak: ## the long run: 1,000,000 requests at 64 clients, memory and audit records counted (SOAK_REQUESTS=N SOAK_CLIENTS=N)
	@requirements/install.sh test
	@SOAK_REQUESTS=$(or $(SOAK_REQUESTS),1000000) $(BIN)/python benchmarks/soak.py

bench: ## two minutes: Tidegate beside nginx, envoy, vllm-router and LiteLLM, fetched into the user's cache the first time
	@requirements/install.sh test
	@$(BIN)/python benchmarks/gateway.py --brief $(if $(PEERS),--peers $(PEERS))

bench-all: ## the long form of it, written to benchmarks/results/, and every other program in benchmarks/
	@requirements/install.sh test
	@for program in $(filter-out benchmarks/soak.py,$(wildcard benchmarks/*.py)); do echo "==> $$program"; $(BIN)/python "$$program"; done

locales: ## check that the catalogues say everything that the code can raise, in every language
	@requirements/install.sh test
	@$(BIN)/python -m pytest -q tests/test_locales.py $(ARCHITECTURE) -k "locales or message or english"

lock: ## write requirements/lock.txt from what is installed (UPGRADE=1: the newest of everything)
	@requirements/install.sh test
	@$(BIN)/python requirements/lock.py $(if $(UPGRADE),--upgrade)
