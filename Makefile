# `make` creates .venv; every other target works inside it. PY picks another Python.
PY ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# uv does not read pip's settings: hand over a local wheel folder where the machine has one.
export UV_FIND_LINKS := $(shell $(PY) -m pip config get global.find-links 2>/dev/null)

.PHONY: all demo test check lint types peers mobile bench-measure nnunet-peers bench-nnunet clean
all: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PY) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev]"
	touch $@

demo: all
	$(BIN)/vesalius demo classify

# One process a core, but no more than four: some tests train networks. A file stays in one process.
test: all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

check: lint types
	$(BIN)/python -m pytest -m "not slow and not realdata"

lint: all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: all
	$(BIN)/mypy

# The converters for mobile devices (`vesalius export --to litert`, `--to executorch`), in an environment of their own.
mobile: .venv-mobile/.installed
.venv-mobile/.installed: pyproject.toml constraints-mobile.txt
	$(PY) -m venv .venv-mobile
	.venv-mobile/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	.venv-mobile/bin/uv pip install --quiet --python .venv-mobile/bin/python -c constraints-mobile.txt -e ".[mobile,monai]"
	touch $@

# The peers that benchmarks compare with, in an environment of their own.
peers: .venv-peers/.installed
.venv-peers/.installed: benchmarks/peers.txt pyproject.toml constraints.txt
	$(PY) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	.venv-peers/bin/uv pip install --quiet --python .venv-peers/bin/python -c constraints.txt -e . -r benchmarks/peers.txt
	touch $@

bench-measure: peers
	.venv-peers/bin/python benchmarks/surface.py
	.venv-peers/bin/python benchmarks/shape.py
	.venv-peers/bin/python benchmarks/vessels.py

# nnU-Net in an environment of its own, and ten minutes of training beside it (DATA, MINUTES and SEED may be given).
nnunet-peers: .venv-nnunet/.installed
.venv-nnunet/.installed: benchmarks/nnunet-peers.txt constraints.txt
	$(PY) -m venv .venv-nnunet
	.venv-nnunet/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	.venv-nnunet/bin/uv pip install --quiet --python .venv-nnunet/bin/python -c constraints.txt -r benchmarks/nnunet-peers.txt
	touch $@

DATA ?= ../shared/data/hippocampus
MINUTES ?= 10
SEED ?= 0
bench-nnunet: all nnunet-peers
	$(BIN)/python benchmarks/nnunet.py --data $(DATA) --minutes $(MINUTES) --seed $(SEED)

clean:
	rm -rf .venv .venv-peers .venv-mobile runs bench .mypy_cache .ruff_cache
