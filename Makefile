# Two promises: `make demo` and `make test` each go from a bare Python to the end, in a
# .venv of their own; both are safe to repeat.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: help install demo demo-gsenet demo-binaural test test-slow benchmark clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv and install into it

$(INSTALLED): setup.py requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed, $(PYTHON) is older; try: make PYTHON=python3.11"; exit 2; }
	@echo "Installing into $(VENV): a few minutes, several GB (PyTorch brings its GPU libraries)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,test]'
	@touch $@

demo: $(INSTALLED) ## train, evaluate and report a small network on synthetic voices
	$(BIN)/python train.py hparams/demo.yaml

demo-gsenet: $(INSTALLED) ## the same for enhancement that a beamformer guides
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[metrics]' || \
	  echo "PESQ is left out of the evaluation: to install it needs a C compiler"
	cd recipes/GSENet && ../../$(BIN)/python train.py hparams/demo.yaml

demo-binaural: $(INSTALLED) ## the same for separation that keeps where the talkers are
	cd recipes/BinauralWSJ0Mix && ../../$(BIN)/python train.py hparams/demo.yaml

test: $(INSTALLED) ## run the tests, but those marked slow
	$(BIN)/python -m pytest -q --durations=10

test-slow: $(INSTALLED) ## run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

benchmark: $(INSTALLED) ## measure everything against named baselines, side by side
	$(BIN)/python -m benchmarks

clean: ## remove .venv; data/ and results/ stay
	rm -rf $(VENV) build *.egg-info
