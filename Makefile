# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv; nothing else is touched.

PYTHON ?= python3
BIN := .venv/bin
LOCK := requirements.lock
READY := .venv/.ready

.PHONY: demo base test test-slow bench check wheel setup lock clean

demo: $(READY)  ## the whole river, small and offline
	@$(BIN)/sote demo --out runs/demo

base: $(READY)  ## train the small world's base models anew, in runs/base: hours on two cores; writes train/world. SIZE=large: larger ones on a GPU
	@$(BIN)/python -m sote.train.world_base $(if $(SIZE),runs/base-$(SIZE) --size $(SIZE),runs/base)

test: $(READY)  ## the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## the tests that take minutes each: the proof, the wheel alone, and nodes, drivers and heads that are lost
	@$(BIN)/python -m pytest -m slow tests/test_faults.py tests/cluster/test_jobs.py tests/serve/test_declared.py \
		tests/train/test_launch_remote.py tests/cluster/test_nodes.py tests/train/test_world_base.py \
		tests/test_proof.py tests/test_wheel.py

bench: $(READY)  ## every bench of this machine beside its peers: BENCHMARKS.md, a page; BENCH="--quick", "--long", "--only caption"
	@$(BIN)/python tests/bench/run.py $(BENCH)

check: $(READY)  ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p sote
	@$(BIN)/lint-imports

wheel: $(READY)  ## dist/sote-VERSION-py3-none-any.whl, by the setuptools of the environment
	@rm -rf build *.egg-info
	@$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist .
	@rm -rf build
	@ls dist/*.whl

setup: $(READY)

$(READY): $(LOCK) pyproject.toml
	@echo "setting up .venv (about 6 GB; a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes $(LOCK)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

lock:  ## pin every dependency anew, with hashes
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --quiet --upgrade --output-file $(LOCK)

clean:  ## remove the environment and caches, never runs
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
