# patchword: `make help` lists what can be made.
PYTHON ?= python3
VENV := .venv
ARGS :=
PARALLEL := --numprocesses 2 --dist loadfile # tests start further processes themselves
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo notebooks benchmark test test-fast test-all check format picture clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "patchword needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(READY) ## a virtual environment in .venv with patchword and its tools

demo: $(READY) ## train SPARC on the embedded emoji scenes, test it, draw its alignment maps (ARGS adds options)
	$(BIN)/patchword fit --config configs/sparc.yaml $(ARGS) \
		--trainer.logger.name demo --trainer.logger.version fit
	$(BIN)/patchword test --config configs/sparc.yaml $(ARGS) \
		--trainer.logger.name demo --trainer.logger.version test --ckpt_path runs/demo/fit/checkpoints/last.ckpt
	@echo
	@echo "Where everything is:"
	@echo "  runs/demo/fit/config.yaml                the resolved configuration"
	@echo "  runs/demo/fit/metrics.csv                losses and validation metrics"
	@echo "  runs/demo/fit/checkpoints/last.ckpt      the trained model"
	@echo "  runs/demo/test/results.json              the numbers of the tables above, with what they measured"
	@echo "  runs/demo/test/maps/*.png                alignment maps: one row per phrase"

notebooks: $(READY) ## run the notebooks in place, on what `patchword compare --config configs/compare.yaml` has left
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

benchmark: $(READY) ## docs/benchmark.md: train every objective with three seeds, report, write the tables (hours)
	$(BIN)/patchword compare --config configs/compare.yaml --jobs 2
	$(BIN)/patchword compare --config configs/ablations/sparc_threshold.yaml --jobs 2 --only 0 "1 over P" 0.5 0.8 \
		--trainer.max_epochs 1
	$(BIN)/python benchmarks/record.py runs/compare docs/benchmark/runs
	$(BIN)/python benchmarks/record.py runs/sparc_threshold docs/benchmark/sparc_threshold
	$(BIN)/python benchmarks/training_step.py --towers scenes --csv docs/benchmark/step.csv
	$(BIN)/patchword report docs/benchmark/runs --out docs/benchmark
	$(BIN)/python benchmarks/table.py docs/benchmark/runs README.md docs/benchmark.md
	$(BIN)/python benchmarks/table.py docs/benchmark/sparc_threshold docs/benchmark.md

test: $(READY) ## all tests but the thorough ones, which repeat at length: what continuous integration runs
	$(BIN)/python -m pytest $(PARALLEL) -m "not thorough"

test-fast: $(READY) ## neither these nor the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not thorough"

test-all: $(READY) ## every test, before a release
	$(BIN)/python -m pytest $(PARALLEL)

check: $(READY) ## ruff, formatting and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
