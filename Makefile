# Every target makes what it needs first; .venv is the one environment all of them use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := daemon,gpu,images,dev

.PHONY: help install demo test lint format size bench-client bench-job clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)   ## the main job on real images; DATA=folder takes your own
	@$(BIN)/python -m examples.demo $(if $(DATA),--data '$(DATA)')

test: lint       ## lint, then all tests
	$(BIN)/python -m pytest

lint: $(STAMP)   ## ruff, mypy --strict, the walls between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## write the formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

size: $(STAMP)   ## lines of code per room
	@$(BIN)/python benchmarks/size.py

bench-client: $(STAMP) ## smpctl status against python -c "import msgspec"
	@$(BIN)/python benchmarks/client.py

bench-job: $(STAMP) ## memory of the main job, and what a crash costs
	@$(BIN)/python -m benchmarks.main_job

clean:           ## remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
