# Everything a newcomer needs. GNU make, POSIX sh; state goes in one folder: `make demo STATE=/elsewhere` moves it.

PYTHON ?= python3
STATE ?= .demo
DEMO_IMAGES ?= 200
VENV := .venv
RUN := $(VENV)/bin/python
SETUP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo up test check soak clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(SETUP) ## the environment in .venv; done again only when requirements.txt has changed

$(SETUP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --requirement requirements.txt
	@touch $@

demo: setup ## three days of pictures through the whole pipeline, with a report (DEMO_IMAGES=200 a day)
	$(RUN) -m demo.run --images $(DEMO_IMAGES) --state "$(STATE)"

up: setup ## the whole stack with the Airflow UI, until Ctrl-C
	$(RUN) -m demo.stack --state "$(STATE)"

test: setup ## all tests but the long ones
	$(RUN) -m pytest -m "not soak"

check: setup ## lint, format, types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

soak: setup ## the long tests: bounds of the benchmarks, scores on 500 pictures, a demo that is stopped; 45 minutes
	$(RUN) -m pytest -m soak --numprocesses 0

clean: ## remove the state folder and what the tools cached; .venv stays
	@if [ -e "$(STATE)" ] && [ ! -e "$(STATE)/lock" ]; then \
		echo "$(STATE) is not a state folder of the demo: left alone" >&2; exit 1; fi
	@[ ! -e "$(STATE)/lock" ] || $(PYTHON) -c 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)' \
		"$(STATE)/lock" 2>/dev/null || { echo "a stack is running on $(STATE): stop it first" >&2; exit 1; }
	rm -rf "$(STATE)" .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
