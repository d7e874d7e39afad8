# make sweep | test | check | test-cluster | chaos: each makes the environment first, and only when the pins changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes of one thread each: where threads outnumber cores the tests take several times longer.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export PYTHONNOUSERSITE := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup sweep test check test-slow test-cluster chaos format constraints clean

setup: $(READY)

# Byte code matters: every Ray worker imports torch anew.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON); install Python 3.11 or 3.12, or set PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "make: $(PYTHON) is not Python 3.11 or 3.12; set PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode \
		-c constraints.txt -e '.[dev]'
	@touch $@

sweep: $(READY)
	$(BIN)/python sweeps/run.py --grid rescale

test: $(READY)
	$(PYTEST)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# What takes minutes: faults into real sweeps, object stores, released configurations, benchmarks.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Several hosts on this machine, as root; what they leave behind is a failure.
test-cluster: $(READY)
	$(BIN)/python -m pytest tests/cluster -m cluster --durations=0

# N faults at random into sweeps that run; some 40 minutes for 200.
N ?= 200
SEED ?= 0
chaos: $(READY)
	$(BIN)/python tests/chaos.py --faults $(N) --seed $(SEED)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The exact versions that are tested; torch is pinned here and nowhere else.
constraints: $(READY)
	echo 'torch==2.13.0' | $(BIN)/uv pip compile --universal --python-version 3.11 pyproject.toml --extra dev --extra cloud \
		--no-header --no-annotate -c - -o constraints.txt

clean:
	rm -rf $(VENV)
