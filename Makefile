# Two commands do everything: `make demo` and `make test`. Both set up first, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Python keeps what it compiles, also where it is told not to: else each process that tests start
# compiles the package again, and each worker rewrites the asserts of every test.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-full attack check docs bench gpu-check venv base

demo: venv
	rm -rf runs/demo
	$(BIN)/python -m world.write tickets --rows 3000 --seed 0 --out runs/demo-data/train.jsonl
	$(BIN)/python -m world.write tickets --rows 200 --seed 1 --out runs/demo-data/test.jsonl
	$(BIN)/lorica train recipes/demo.yaml
	$(BIN)/lorica eval runs/demo --data runs/demo-data/test.jsonl

# Two workers, each on one core: threads of both would wait for one another.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(TESTS)

test-slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow --timeout 1200

test-full: venv  # the slow suite at full length: what seldom fails is looked for, for hours
	LORICA_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow --timeout 3600

attack: venv  # hostile and damaged files, settings and rows: some 2,000 inputs
	LORICA_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow tests/attack --timeout 1200

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: venv  # the site, in build/docs; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/docs/index.html, or: $(BIN)/python -m http.server -d build/docs (with search)"

# What a step costs, beside PEFT and the peers that benchmarks/speed/peers has installed. Mixed
# precision takes a processor without bfloat16 instructions very long, hence the fewer rounds.
bench: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --only "same work" "as shipped" "at once" scaling
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --only "as shipped, mixed precision" --rounds 2
	$(BIN)/python -m benchmarks.speed --write docs/performance/README.md

gpu-check: venv  # on a CUDA card, in under ten minutes: laws, resume, a recipe in 7B's shape, QLoRA
	$(BIN)/python -m benchmarks.gpu

base: venv  # pretrain the bundled base again, from text that world/ writes
	$(BIN)/python -m world.pretrain --out src/lorica/base/weights

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(READY)
