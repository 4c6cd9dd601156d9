# Every target sets up what it needs, and does nothing where that is done. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
UV_VERSION := 0.13.9
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
PORTS = --mlflow-port $(MLFLOW_PORT) --prefect-port $(PREFECT_PORT)

VENV := .venv
READY := $(VENV)/.ready
UV := .uv/bin/uv

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without compiled bytecode every import takes 2 to 4 times as long
unexport VIRTUAL_ENV

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

pipeline: $(READY)  ## rebuild everything that changed, and show the result
	@dvc repro
	@python -m pipelines.summary

PYTEST = OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: $(READY)  ## run the tests
	@$(PYTEST) -m "not slow"

slow: $(READY)  ## run the tests that repeat whole stages for certainty
	@$(PYTEST) -m slow

check: $(READY)  ## lint, format check, types
	@ruff check . && ruff format --check . && mypy

ui: $(READY)  ## open MLflow and Prefect (MLFLOW_PORT=5000 PREFECT_PORT=4200)
	@exec python -m pipelines.services ui $(PORTS)

schedule: $(READY)  ## start a Prefect server and a worker, and schedule the deployments of prefect.yaml
	@exec python -m pipelines.services schedule $(PORTS)

MODEL ?= models:/$(or $(shell sed -n 's/^  "name": "\(.*\)",$$/\1/p' reports/registration.json 2>/dev/null),grpo-rm-digits)@champion
serve: $(READY)  ## serve the champion and follow it (MODEL=models:/NAME@ALIAS or a file, INDEX=indexes, GRPO_RM_PORT=8000)
	@exec python -m serving --model "$(MODEL)" $(if $(INDEX),--index "$(INDEX)")

study: $(READY)  ## run what is missing of the experiments of docs/experiments.md (hours; it goes on where it stopped)
	@python -m study

bench: $(READY)  ## measure what docs/benchmarks.md reports (three quarters of an hour on a quiet machine)
	@python -m benchmarks.pipeline
	@python -m benchmarks.serving
	@python -m benchmarks.training
	@python -m benchmarks.data
	@python -m benchmarks.evaluation
	@python -m benchmarks.segmentation

lock: $(UV)  ## resolve pyproject.toml anew into requirements.lock, and the part of it that serving needs
	@$(UV) pip compile pyproject.toml --all-extras --group serve --universal --generate-hashes --python-version 3.11 \
		--no-header --quiet --upgrade --output-file requirements.lock
	@$(UV) pip compile --group serve --constraint requirements.lock --universal --generate-hashes \
		--python-version 3.11 --no-header --quiet --upgrade --output-file requirements.serve.lock

containers: $(READY)  ## check Dockerfile and compose.yaml, and execute the Dockerfile without an engine (root, debootstrap)
	@python -m deploy.check_containers

setup: $(READY)  ## only install

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"error: this is Python {v[0]}.{v[1]}, expected 3.11 to 3.13; name one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m pip --version >/dev/null || { echo "error: $(PYTHON) has no pip; install it (Debian: apt install python3-pip)"; exit 1; }
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action ignore --target .uv uv==$(UV_VERSION)

$(READY): requirements.lock pyproject.toml | $(UV)
	@echo "$(if $(wildcard $(READY)),updating $(VENV) to requirements.lock,setting up $(VENV) (once; some GB))"
	@test -x $(VENV)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --python $(VENV)/bin/python --require-hashes --compile-bytecode requirements.lock
	@$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

.PHONY: help pipeline test slow check ui schedule serve study bench lock containers setup
