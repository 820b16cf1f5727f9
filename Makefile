# Every target sets up what it needs; nothing has to be installed or activated first but Python >= 3.10, cargo and a
# C compiler. Paths are relative throughout, so a checkout may live in a folder with spaces in its name.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test fuzz kills determinism memcheck soak test-busy test-transformers-4 bench bench-gpu compare compare-smoke check fix dev \
	bench-gpu-unmeasured examples example-pretrained docs site pictures dist lock clean moved unbuilt

VENV := .venv
PY := $(VENV)/bin/python
comma := ,
# What a target needs beside the development tools.
EXTRAS ?= dev$(if $(filter docs site pictures,$(MAKECMDGOALS)),$(comma)docs)$(if $(filter dist,$(MAKECMDGOALS)),$(comma)release)
ARGS ?=
PLANS ?= $(filter-out %/smoke.yaml %/scale.yaml,$(wildcard examples/compare/*.yaml))
PYTHONS ?= python3.10 python3.11
AGAIN = $(if $(wildcard $(INSTALLED)),--quiet)
# One stamp for each set of extras: asking for another set installs it.
INSTALLED := $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))
RUST := Cargo.toml Cargo.lock .cargo/config.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)
DEPENDENCIES := $(PY) pyproject.toml constraints.txt Cargo.toml moved
# The exact versions; of torch that of the interpreter's own, where it has one (scripts/tools.sh torch).
CONSTRAINTS := $(VENV)/constraints.txt
FAILED = { sh scripts/tools.sh failed; exit 1; }

# pip calls the build backend `maturin` by name, so ours must come first; and whatever other environment the caller
# has active must not leak into this one.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' Makefile
	@echo '  ARGS="..." passes more arguments; EXTRAS=dev,peft installs more extras; PYTHON=python3.12 picks the interpreter.'

train: $(INSTALLED) ## Train the tiny policy on 4x4 Sudoku; results land in runs/quickstart
	$(VENV)/bin/stp-rs train --config examples/recipes/quickstart.yaml $(ARGS)

test: $(INSTALLED) ## Run the Python tests; ARGS goes to pytest
	$(PY) -m pytest $(ARGS)

fuzz: $(INSTALLED) ## A million random calls of the core, then 10,000 damaged files; ARGS="--seed 7" makes others
	OMP_NUM_THREADS=1 $(PY) -m tests.reliability.calls --random 1000000 $(ARGS)
	OMP_NUM_THREADS=1 $(PY) -m tests.reliability.mutations $(ARGS)

kills: $(INSTALLED) ## 700 kills and 400 disk faults over small runs: nothing is lost
	OMP_NUM_THREADS=1 $(PY) -m tests.reliability.kills $(ARGS)

determinism: $(INSTALLED) ## One small run under many circumstances: the same weights
	$(PY) -m tests.reliability.determinism $(ARGS)

memcheck: ## Run the Rust tests under valgrind and the address sanitizer
	@sh scripts/tools.sh rust
	@sh scripts/memcheck.sh

test-busy: ## Run the tests twice beside four busy loops, in a clone whose folder has a space, without HOME
	@sh scripts/busy.sh $(ARGS)

soak: $(INSTALLED) ## Half an hour of training, kills and resumes: memory, handles and threads stay flat
	OMP_NUM_THREADS=1 $(PY) -m tests.reliability.soak $(ARGS)

test-transformers-4: $(VENV)/transformers-4 ## Run the tests of models on transformers 4.57, installed beside the environment
	PYTHONPATH="$(CURDIR)/$<" $(PY) -m pytest tests/equivalence/test_families.py tests/equivalence/test_blocks.py \
		tests/equivalence/test_masked_lms.py tests/unit/test_models.py tests/unit/test_gate.py $(ARGS)

$(VENV)/transformers-4: $(INSTALLED)
	rm -rf $@
	$(PY) -m pip install --quiet --target $@ "transformers>=4.57,<5"
	rm -rf $@/numpy $@/numpy.libs $@/numpy-*

bench: $(INSTALLED) ## Time the Rust kernels and the sampler against the published loops (ARGS=--test: each kernel once, untimed)
	cargo bench --locked $(if $(filter --test,$(ARGS)),--profile dev) $(if $(ARGS),-- $(ARGS))
	$(if $(filter --test,$(ARGS)),$(PY) -c "import benches.python.bench_sampler" && $(PY) -m benches.gpu --small --backend eager,\
		OMP_NUM_THREADS=1 $(PY) -m benches.python.bench_sampler --large --policy-100m && $(PY) -m benches.python.plot)

bench-gpu: $(INSTALLED) ## Time rollouts and updates on a GPU (ARGS="--shape llada-8b --parts forward"; --small: any machine)
	$(PY) -m benches.gpu --json benches/gpu/results.json $(ARGS)

bench-gpu-unmeasured: $(INSTALLED) ## On a GPU in under four minutes: tests that need one, then what no card has measured
	$(PY) -m benches.gpu --unmeasured --tests --json benches/gpu/results_unmeasured.json $(ARGS)

compare: $(INSTALLED) ## Run the comparisons of examples/compare (PLANS="a.yaml b.yaml": only these); what is done is not done again
	@set -e; for plan in $(PLANS); do echo "== $$plan"; $(PY) -m studies.compare --plan "$$plan" $(ARGS); done

compare-smoke: $(INSTALLED) ## Train every preset for 200 updates with two seeds on a tiny budget
	rm -rf runs/compare-smoke
	$(PY) -m studies.compare --plan examples/compare/smoke.yaml --jobs 2 $(ARGS)

check: $(INSTALLED) ## Lint, format check, types, stubs, clippy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy python studies scripts $(wildcard examples/*.py examples/*/*.py) $(wildcard tests/boundary)
	$(VENV)/bin/lint-imports
	$(PY) -m mypy.stubtest stp_rs._core --mypy-config-file pyproject.toml
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

fix: $(INSTALLED) ## Format the sources and apply the linters' own fixes
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	cargo fmt --all

dev: $(INSTALLED) ## Only set up: the environment, the extension in release mode, the development tools

example-pretrained: ## Train AntiBERTy, a real pretrained masked LM, with three seeds: under ten CPU minutes
	$(MAKE) --no-print-directory dev EXTRAS=dev,pretrained
	OMP_NUM_THREADS=1 $(PY) examples/pretrained/antibodies.py $(ARGS)

examples: $(INSTALLED) ## Run every file of examples/ itself
	@set -e; for file in $(filter-out %_distributed.py,$(wildcard examples/*.py)); do echo "== $$file"; $(PY) "$$file"; done
	@set -e; for file in $(wildcard examples/*_distributed.py); do echo "== $$file (2 processes)"; \
		OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc-per-node 2 "$$file"; done

docs: site ## Build the documentation site and the Rust core's documentation; a broken link is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

site: $(INSTALLED) ## Build the documentation site into build/site; a warning is an error
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --doctree-dir build/doctrees docs build/site
	@echo "== build/site/index.html"

pictures: $(INSTALLED) ## Draw the pictures of docs/concepts.md anew
	$(PY) scripts/draw_concepts.py docs/img

# A wheel for old systems too is linked by zig (a package of PyPI) against old symbols of the C library; zig keeps its cache in
# the home folder, which not every user has.
dist: $(INSTALLED) ## Build the source distribution, and a wheel from it, into dist/
	rm -rf dist
	ZIG_GLOBAL_CACHE_DIR="$${ZIG_GLOBAL_CACHE_DIR:-$$PWD/target/zig}" \
	$(VENV)/bin/maturin build --release --sdist --interpreter $(PY) --out dist \
		$(if $(filter Linux,$(shell uname)),--zig --compatibility manylinux2014)

lock: $(INSTALLED) ## Resolve constraints.txt anew, for each interpreter of PYTHONS="python3.10 python3.11"
	$(PY) scripts/lock.py $(PYTHONS)

clean: ## Remove the environment and every build product; keeps runs/
	rm -rf $(VENV) target dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests examples benches -name __pycache__ -prune -exec rm -rf {} +
	rm -f python/stp_rs/_core.*.so

# A torch that the interpreter has is used, and not installed again (3 GB with CUDA). TORCH=new installs the pinned one.
$(PY):
	@sh scripts/tools.sh rust
	@sh scripts/tools.sh space
	@python=$$(sh scripts/tools.sh python) && echo "== $(VENV), made by $$("$$python" --version)" && \
		"$$python" -m venv --clear $(VENV) && sh scripts/tools.sh torch "$$python" $(VENV)

# The stamp holds the folder it was made in: an editable install in a folder that was moved since points at nothing.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
$(INSTALLED): moved
endif
ifeq ($(wildcard python/stp_rs/_core.*so),)
$(INSTALLED): unbuilt
endif

# The first run, and any change of what is depended on, resolves everything. A change of the Rust sources alone rebuilds
# the extension in place, in seconds. Without build isolation both share cargo's target folder. Cargo keeps one cdylib
# for all versions of a package and takes it for fresh when a checkout goes back to an older version, so it is removed.
$(INSTALLED): $(PY) pyproject.toml constraints.txt $(RUST)
	@sh scripts/tools.sh rust
	$(if $(filter Cargo.toml,$?),@cargo clean --quiet --release --package stp-py)
	@{ if [ -e $(VENV)/torch.txt ]; then grep -v '^torch==' constraints.txt; cat $(VENV)/torch.txt; \
		else cat constraints.txt; fi; } > $(CONSTRAINTS)
	$(if $(filter $(DEPENDENCIES),$?),\
		{ $(PY) -m pip install --quiet --constraint $(CONSTRAINTS) maturin && \
		$(PY) -m pip install $(AGAIN) --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[$(EXTRAS)]"; } || $(FAILED),\
		$(VENV)/bin/maturin develop --release --skip-install)
	@echo '$(CURDIR)' > $@
