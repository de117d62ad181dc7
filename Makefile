# Two promises: `make demo` and `make test` each go from a bare Python to the end, in a
# .venv of their own with the versions of requirements-lock.txt; both are safe to repeat.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# For test-lowest: a Python that the oldest versions have wheels for
OLDEST_PYTHON ?= python3.10

.PHONY: help install demo demo-asr demo-gsenet demo-binaural test test-slow test-newest \
  test-lowest lint lock wheel benchmark clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv and install into it

$(INSTALLED): requirements-lock.txt requirements.txt setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); name a Python" \
	  "of 3.10 or later, such as: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) scripts/install.py

demo: $(INSTALLED) ## train, evaluate and report a small network on synthetic voices
	$(BIN)/python train.py hparams/demo.yaml

demo-asr: $(INSTALLED) ## the same for speech recognition in noise: alone, in cascade, jointly
	$(BIN)/python ablate.py recipes/GradientRemedy/hparams/demo.yaml \
	  --grid system=noisy,cascade,joint --seeds 1234 --jobs 2 --output_folder results/asr_demo \
	  --metrics wer,wer_noisy,wer_untrained,si_snr_i
	@echo "Each of results/asr_demo/system=*/1234 has report.html, wer.txt, wavs, gradients.png"

demo-gsenet: $(INSTALLED) ## the same for enhancement that a beamformer guides
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[metrics]' || \
	  echo "PESQ is left out of the evaluation: to install it needs a C compiler"
	cd recipes/GSENet && ../../$(BIN)/python train.py hparams/demo.yaml

demo-binaural: $(INSTALLED) ## the same for separation that keeps where the talkers are
	cd recipes/BinauralWSJ0Mix && ../../$(BIN)/python train.py hparams/demo.yaml

test: $(INSTALLED) ## run the tests, but those marked slow
	$(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses 4 --dist loadfile

test-slow: $(INSTALLED) ## run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-newest: $(INSTALLED) ## run the tests with the newest versions there are, in .venv-newest
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-newest
	$(BIN)/uv pip install --quiet --python .venv-newest --upgrade -e '.[demo,test]'
	.venv-newest/bin/python -m pytest -q --durations=10 -n auto --maxprocesses 4 --dist loadfile

test-lowest: $(INSTALLED) ## run the tests with the lower bounds of setup.py, in .venv-lowest
	$(BIN)/uv venv --quiet --clear --python $(OLDEST_PYTHON) .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e '.[demo,test]'
	.venv-lowest/bin/python -m pytest -q --durations=10 -n auto --maxprocesses 4 --dist loadfile

lint: $(INSTALLED) ## look at the code: ruff and mypy, as the tests do
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: $(INSTALLED) ## pin the newest versions of everything in requirements-lock.txt
	$(BIN)/uv pip compile setup.py --quiet --upgrade --universal --python-version 3.10 \
	  --extra demo --extra test --extra dev --no-annotate --custom-compile-command "make lock" \
	  --output-file requirements-lock.txt

wheel: $(INSTALLED) ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

benchmark: $(INSTALLED) ## measure everything against named baselines, side by side
	$(BIN)/python -m benchmarks

clean: ## remove the environments; data/ and results/ stay
	rm -rf $(VENV) .venv-newest .venv-lowest build dist *.egg-info
