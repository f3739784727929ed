# Every target makes what it needs first; .venv is the one environment all of them use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := daemon,gpu,images,dev
PEERS  := $(VENV)/.bench-installed
JSON   ?= build/bench/latest.json
# Where it is set, each of the thousand processes of a run of the tests would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-gpu lint format size bench bench-report bench-gpu bench-gpu-report bench-client bench-job torture torture-report fuzz man wheel wheel-check booted-check install-systemd clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)   ## the main job on real images; DATA=folder takes your own
	@$(BIN)/python -m examples.demo $(if $(DATA),--data '$(DATA)')

# Two processes more than cores: half of its time a test waits, for a process that starts or a deadline.
test: lint       ## lint, then all tests, in as many processes as there are cores, and two
	$(BIN)/python -m pytest -n $$(($$(nproc) + 2)) --dist loadfile

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

# One at a time: a peer that cannot be installed is shown as absent, and keeps nobody from measuring the others.
$(PEERS): $(STAMP) pyproject.toml constraints.txt
	@$(BIN)/python -c "import tomllib; file = open('pyproject.toml', 'rb'); \
	    print(*tomllib.load(file)['project']['optional-dependencies']['bench'], sep='\n')" | while read peer; do \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt "$$peer" || echo "absent: $$peer" >&2; done
	@touch $@

bench: $(PEERS)  ## every load against its peers; ROUNDS=5 ONLY=name,name QUICK=1
	@$(BIN)/python -m benchmarks --rounds $(or $(ROUNDS),5) --only '$(ONLY)' $(if $(QUICK),--quick)

bench-report: $(STAMP) ## write tables and charts of the last run (or of JSON="file file") into docs/
	@$(BIN)/python -m benchmarks --report $(JSON)

bench-gpu-report: $(STAMP) ## the same for a run of bench-gpu, JSON=file
	@$(BIN)/python -m benchmarks.gpu --report $(JSON)

bench-gpu: $(PEERS) ## copies to a CUDA device, alone and while fetching
	@$(BIN)/python -m benchmarks.gpu

test-gpu: $(STAMP) ## the tests of the compute process on a CUDA device instead of the CPU
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('there is no CUDA device here')"
	SMP_TEST_DEVICE=cuda $(BIN)/python -m pytest -n auto --dist loadfile tests/compute --ignore tests/compute/test_gpu.py
	$(BIN)/python -m pytest tests/compute/test_gpu.py # alone: it fills the device

bench-client: $(STAMP) ## smpctl status against python -c "import msgspec"
	@$(BIN)/python benchmarks/client.py

bench-job: $(STAMP) ## memory of the main job, and what a crash costs
	@$(BIN)/python -m benchmarks.main_job

torture: $(STAMP) ## every experiment of docs/reliability.md at full count; ONLY=R3,R9 SEED=n TRIALS=n TRIAL=n
	@PYTHONPATH=tests $(BIN)/python -m torture --only '$(ONLY)' $(if $(SEED),--seed $(SEED)) \
	    $(if $(TRIALS),--trials $(TRIALS)) $(if $(TRIAL),--trial $(TRIAL))

.PHONY: soak
soak: $(STAMP)   ## syncs while everything around them changes and dies; SECONDS=600 SEED=n
	@PYTHONPATH=tests $(BIN)/python -m e2e.long_sync --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

.PHONY: many
many: $(STAMP)   ## a sync of a bucket of very many objects, killed within its listing; OBJECTS=100000
	@PYTHONPATH=tests $(BIN)/python -m e2e.many_objects --objects $(or $(OBJECTS),100000)

fuzz: $(STAMP)   ## one parser under atheris: TARGET=name RUNS=n SEED=n; without TARGET their names
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(TARGET) -runs=$(or $(RUNS),100000) $(if $(SEED),-seed=$(SEED))

torture-report: $(STAMP) ## write the table of the last run (or of TORTURE="file file") into docs/
	@PYTHONPATH=tests $(BIN)/python -m torture --report $(or $(TORTURE),build/torture/latest.json)

capture: $(STAMP) ## write docs/top.svg and docs/grafana/panels.svg: a real run, on the screen and as the dashboard has it
	@PYTHONPATH=tests $(BIN)/python docs/capture.py

man: $(STAMP)    ## manual pages in build/man
	@$(BIN)/python docs/render_man.py build/man

wheel: $(STAMP)  ## the distribution, in dist
	@rm -rf dist
	@$(BIN)/python -m hatchling build -t wheel

wheel-check: wheel ## install the wheel as a person does, with pipx; needs a network
	@$(PYTHON) -m venv build/pipx
	@build/pipx/bin/pip install --quiet pipx
	PIPX=$(CURDIR)/build/pipx/bin/pipx $(BIN)/python -m pytest -q tests/wheel

booted-check: $(STAMP) ## the wheel as a service of a machine booted with systemd; needs root, systemd-nspawn and a network
	SMP_BOOTED=1 $(BIN)/python -m pytest -q tests/booted

install-systemd: $(STAMP) ## units, users and folders as files below DESTDIR; PROGRAMS=/opt/smp/venv/bin, COMPUTE=socket
	@$(BIN)/smpctl setup --root $(or $(DESTDIR),/) --programs $(or $(PROGRAMS),/opt/smp/venv/bin) --compute $(or $(COMPUTE),spawn)

clean:           ## remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
