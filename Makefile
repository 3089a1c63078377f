# Attention Loom. `make help` lists the commands; `make demo` and `make test` need nothing but Python 3.11+, make and a
# C compiler: they set up the rest by themselves.

PYTHON ?= python3
VENV := .venv/bin
export OMP_NUM_THREADS ?= 2
# of the test suite, with one thread each; every worker may start a ComfyUI of its own (about 4 GB)
WORKERS ?= 2
export COMFYUI_DIR ?=
ifeq ($(COMFYUI_DIR),)
unexport COMFYUI_DIR
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format lock evidence scoreboard clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## virtual environment and ComfyUI (again only when the lock file changes)
	@$(PYTHON) tools/setup.py

demo: setup  ## a longer video on a real ComfyUI: contact sheet, clips and numbers into demo_output/
	@$(VENV)/python -m attention_loom.tools.demo

test: setup  ## the whole test suite (WORKERS=2)
	@OMP_NUM_THREADS=1 $(VENV)/pytest -c tests/pytest.ini -n $(WORKERS) --dist worksteal tests $(ARGS)

lint: setup  ## ruff, mypy, import contracts
	@$(VENV)/ruff check . && $(VENV)/ruff format --check . && cd build/import && ../../$(VENV)/mypy --config-file ../../pyproject.toml -p attention_loom && ../../$(VENV)/lint-imports --config ../../pyproject.toml

format: setup  ## bring the code into shape
	@$(VENV)/ruff check --fix . && $(VENV)/ruff format .

evidence: setup  ## the length study in the toy world (about an hour; resumes; ARGS=--fresh starts anew)
	@$(VENV)/python -m attention_loom.toyworld.length_study $(ARGS)

scoreboard: setup  ## every method's claim against stock and the alternatives, into docs/results.md (SEEDS=16 METHODS="ultravico sparse"; resumes)
	@$(VENV)/python -m attention_loom.toyworld.scoreboard $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(METHODS),--only $(METHODS)) $(ARGS)

lock:  ## renew requirements/dev.txt from requirements/dev.in
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate -o requirements/dev.txt requirements/dev.in

clean:  ## remove what setup and demo made
	rm -rf .venv build demo_output
