# `make demo` and `make test` need Python 3.10 or newer and make, nothing else: each makes .venv on its first run.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/digits-vp

.PHONY: help demo test test-portable verify lint types docs check clean

help:
	@echo "make demo            train on digits, draw samples, score the test set in bits/dim (about 6 minutes), into $(RUN)"
	@echo "make test            the test suite"
	@echo "make test-portable   the tests of arithmetic, as a processor without vector instructions computes"
	@echo "make verify          the tests that take too long for make test"
	@echo "make lint            ruff"
	@echo "make types           mypy"
	@echo "make docs            the documentation, into docs/_build/html"
	@echo "make check           lint, types, test, docs"

.venv/.base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# torch-fidelity comes without its dependencies, one of which is torchvision: the tests use the file of one network alone.
.venv/.test: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torch-fidelity==0.4.0
	touch $@

.venv/.docs: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# One thread: on a network this small a second one gains little, and waits for ever on a machine that has other work.
demo: export OMP_NUM_THREADS ?= 1
demo: .venv/.base
	$(BIN)/python scripts/train.py run_dir=$(RUN) experiment=digits preview.n=0
	$(BIN)/python scripts/sample.py ckpt=$(RUN) n=64 out=$(RUN)/samples/digits.png overwrite=true
	$(BIN)/python scripts/likelihood.py ckpt=$(RUN)
	@$(BIN)/python scripts/demo.py run_dir=$(RUN)

# Test files are compiled once, not once for each worker of each run.
unexport PYTHONDONTWRITEBYTECODE

test: .venv/.test
	$(BIN)/python -m pytest -n auto

# What depends on how a processor rounds, with the kernels of another one.
test-portable: export ATEN_CPU_CAPABILITY = default
test-portable: export ONEDNN_MAX_CPU_ISA = SSE41
test-portable: .venv/.test
	$(BIN)/python -m pytest -n auto tests/interop tests/networks tests/likelihood tests/denoisers tests/solvers tests/test_old_files.py

verify: .venv/.test
	$(BIN)/python -m pytest -n auto -m slow

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@! grep -rlE '<(script|link)[^>]+(src|href)="(https?:)?//[^"]+\.(js|css)' --include=*.html docs/_build/html || \
		{ echo "these pages load a script or a style from the network: they must work without one"; exit 1; }

check: lint types test docs

clean:
	rm -rf .venv docs/_build .mypy_cache .ruff_cache .pytest_cache *.egg-info
