# make demo: the main job on a sample person. make test: lint and every test. Both set up what they need.
# uv installs; where it is missing it is taken through pip into .make/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .make/uv/bin/uv)
STAMP := $(VENV)/.installed

# The tests start Python hundreds of times: what it compiles is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fast lint bench ollama extras clean

demo: $(STAMP)-demo
	$(BIN)/twin demo

# The fast tests in two processes; the slow ones, which train, alone.
test: lint extras ollama
	$(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest -m slow -n 0

fast: $(STAMP)-dev
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)-dev
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/mypy

bench: $(STAMP)-dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python -m benchmarks.gate
	$(BIN)/python -m benchmarks.mask
	$(BIN)/python -m benchmarks.registration
	$(BIN)/python benchmarks/gguf.py

# A real Ollama for the tests: one on PATH, or built once into the user's cache. Without Go its tests are skipped, aloud.
ollama: $(STAMP)-dev
	@$(BIN)/python scripts/get_ollama.py || echo "The Ollama tests will be skipped (see the line above)."

# Every extra resolves together with the pinned set, for each Python that is supported.
extras: $(STAMP)-dev
	for version in 3.11 3.12 3.13 3.14; do \
	  $(UV) pip compile -q --python-version $$version --constraint constraints.txt --all-extras pyproject.toml -o /dev/null || exit 1; \
	  echo "Python $$version: every extra resolves"; \
	done

.make/uv/bin/uv:
	$(PYTHON) -m venv .make/uv
	.make/uv/bin/python -m pip install -q uv

$(VENV)/pyvenv.cfg: | $(UV)
	$(UV) venv -q --allow-existing --python $(PYTHON) $(VENV)

$(STAMP)-demo: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	$(UV) pip install --python $(BIN)/python --constraint constraints.txt -e '.[demo]'
	@touch $@

$(STAMP)-dev: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	$(UV) pip install --python $(BIN)/python --constraint constraints.txt -e '.[demo,dev]'
	@touch $@ $(STAMP)-demo

clean:
	rm -rf $(VENV) .make dist build demo
