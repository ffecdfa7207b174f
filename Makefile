# make demo | test | acceptance | lint | bench
#
# Everything runs in .venv, which the first target makes: python3 and a package index are all it needs.
# To use an interpreter that has the packages already, name it:  make test PYTHON=/path/to/python
BOOTSTRAP ?= python3
VENV := .venv
ifeq ($(origin PYTHON),command line)
READY :=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
endif
TESTS ?= tests
# Tests use a core each: their tensors are too small for more.
JOBS ?= $(shell nproc)
MARKERS ?= not slow

# The packages are found in the tree itself, so a named interpreter need not have qvit installed.
export PYTHONPATH := $(CURDIR):$(CURDIR)/kernels

.DEFAULT_GOAL := test
.PHONY: demo test acceptance lint bench clean

# The trained model in the package: to 4 bits without data, its accuracy, its speed, and one table. Offline once installed.
demo: $(READY)
	@mkdir -p out/demo
	$(PYTHON) -m qvit quantize demo_vit --w 4 --a 4 --overwrite -o out/demo/demo_vit-w4a4 --json > out/demo/quantize.json
	$(PYTHON) -m qvit eval out/demo/demo_vit-w4a4 --data demo --json > out/demo/eval.json
	$(PYTHON) -m qvit bench out/demo/demo_vit-w4a4 --baseline fp32,bf16 --no-footprint --agreement 0 --json > out/demo/bench.json
	@$(PYTHON) -m qvit.demo out/demo/quantize.json out/demo/eval.json out/demo/bench.json

test: $(READY)
	$(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m "$(MARKERS)" $(TESTS)

# The bounds on real weights and real images; needs ../shared and several minutes.
acceptance: $(READY)
	OMP_NUM_THREADS=$$(nproc) $(PYTHON) -m pytest -m slow $(TESTS)

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath "$(PYTHON)"
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

# DeiT-S with random weights (values do not change the time) at 8 bits against the float model, on this machine.
bench: $(READY)
	$(PYTHON) -m qvit quantize deit_s --no-pretrained --w 8 --a 8 --overwrite -o out/deit_s-w8a8
	$(PYTHON) -m qvit bench out/deit_s-w8a8 --device cpu --batch 1,8 -o out/bench.json

$(VENV)/.ready: pyproject.toml
	@$(BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qvit needs Python 3.11 or newer; name one with BOOTSTRAP=python3.12" >&2; exit 1; }
	$(BOOTSTRAP) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) dist out
