# Two promises: `make demo` and `make test` each go from a bare Python to the end, in a
# .venv of their own; both are safe to repeat.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: help install demo demo-asr demo-gsenet demo-binaural test test-slow benchmark clean

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
	$(BIN)/python -m pytest -q --durations=10

test-slow: $(INSTALLED) ## run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

benchmark: $(INSTALLED) ## measure everything against named baselines, side by side
	$(BIN)/python -m benchmarks

clean: ## remove .venv; data/ and results/ stay
	rm -rf $(VENV) build *.egg-info
