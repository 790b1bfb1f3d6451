# `make demo` and `make test` set themselves up: the first run makes .venv, later runs reuse it.

PYTHON ?= python3
TORCH  := torch==2.13.0
TRITON := triton==3.7.1
FRAMES := lightning accelerate transformers
TOOLS  := pytest pytest-xdist hypothesis numpy matplotlib scikit-learn tqdm \
          "ruff~=0.17.0" "mypy~=2.4" "setuptools>=64" wheel ninja
DOCS   := "mkdocs-material~=9.7" "mkdocstrings[python]~=1.0" "latex2mathml~=3.81"

PY  := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

has_torch = $(1) -c 'import torch; \
	raise SystemExit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' >/dev/null 2>&1

# Makes .venv look for packages where $(PYTHON) does. Not --system-site-packages: of a $(PYTHON) that
# is a virtual environment's, that would pass on the packages below it and not its own.
define pass_on
$(PYTHON) -c 'import sys; \
	[print(f"import site; site.addsitedir({p!r})") for p in sys.path if p.endswith("-packages")]' \
	>"$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
endef

.PHONY: demo test conformance lint bench bench-full docs gpu gpu-bench gpu-tune static sanitize matrix clean

demo: .venv/.ready
	$(PY) examples/train_digits.py

# A file's tests run on one worker: what they share is compiled once, not once a worker.
FILES := --dist loadfile --no-loadscope-reorder

# Then what a GPU is to show of graphs, on CPU tensors with a stand-in for a capture.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(FILES) --ignore=tests/gpu tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --confcutdir=tests/gpu \
		tests/gpu/test_calls.py tests/gpu/test_conversion.py tests/gpu/test_edits.py \
		tests/gpu/test_graphs.py tests/gpu/test_many_tensors.py tests/gpu/test_refusals.py \
		tests/gpu/test_settings.py

# The long form: three times the random schedules; writes docs/conformance.md. About 12 minutes.
conformance: .venv/.ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(FILES) -p tests.conformance \
		--conformance docs/conformance.md --times-examples 3 --ignore=tests/gpu tests

lint: .venv/.ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Under 5 minutes on two idle cores; bench-full measures every task and model, for hours.
bench: .venv/.ready
	$(PY) -m benchmarks.step --quick
	$(PY) -m benchmarks.step --quick --dtype bfloat16
	$(PY) -m benchmarks.step --quick --optimizer SGD
	$(PY) -m benchmarks.graph --quick
	$(PY) -m benchmarks.schedule --quick
	$(PY) -m benchmarks.host --quick
	$(PY) -m benchmarks.scaling --quick
	$(PY) -m benchmarks.cases --quick
	$(PY) -m benchmarks.report

bench-full: .venv/.ready
	rules=$$($(PY) -c 'from benchmarks.workload import RULES; print(*RULES)') && \
	for optimizer in $$rules; do for dtype in float32 bfloat16 mixed; do \
		$(PY) -m benchmarks.step --optimizer $$optimizer --dtype $$dtype || exit 1; \
	done; done
	$(PY) -m benchmarks.graph
	$(PY) -m benchmarks.schedule
	$(PY) -m benchmarks.host
	$(PY) -m benchmarks.scaling
	$(PY) -m benchmarks.cases
	$(PY) -m benchmarks.report

# The report on the compiled kernels, and its limits; needs Triton, no GPU.
static: .venv/.ready
	$(PY) -m benchmarks.static
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/test_static.py

# The CPU engine under AddressSanitizer and UndefinedBehaviorSanitizer; about 5 minutes.
sanitize: .venv/.ready
	bash tests/sanitize.sh $(PY)

# Pythons by torches by Tritons, an environment of gigabytes each; writes docs/versions.md.
# ONLY="3.10- torch2.15" chooses rows, FULL=1 the whole suite, MATRIX where the environments are.
MATRIX ?= .matrix
matrix:
	$(PYTHON) -m tests.matrix --folder $(MATRIX) $(FULL:%=--full) --only $(ONLY)

# On a GPU, each below 540 s; no network, no .venv: the python3 at hand. Missing packages are named.
gpu:
	bash tests/gpu/run.sh

gpu-bench:
	bash benchmarks/gpu.sh

# In 4 minutes: what tables/layout.py is to hold for this GPU.
gpu-tune:
	TRITON_INTERPRET=0 $(PYTHON) -m benchmarks.tuning --out "$${OUT:-benchmarks/results}"

# Strict: a link that leads nowhere, an included file that is gone, or a page that would fetch
# something from the network is an error. Once DOCS is installed it needs no network itself.
docs: .venv/.ready
	$(PIP) $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:
	rm -rf .venv .matrix build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A torch the machine has is used; else the pinned one is installed, and Triton beside it where it
# has wheels.
.venv/.ready: setup.py pyproject.toml Makefile
	$(PY) -m pip --version >/dev/null 2>&1 || { $(PYTHON) -m venv --clear .venv && \
		{ ! $(call has_torch,$(PYTHON)) || $(pass_on); }; }
	$(call has_torch,$(PY)) || $(PIP) $(TORCH)
	$(PY) -c 'import triton' 2>/dev/null || [ "$$(uname -sm)" != "Linux x86_64" ] || $(PIP) $(TRITON)
	$(PIP) $(TOOLS) $(FRAMES)
	$(PIP) --no-deps timm lion-pytorch schedulefree
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@
