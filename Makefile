# make demo    a small FIBER finds things by words and learns a new one, in 5 minutes; a page in OUTPUT/demo
# make tiny    train the small FIBER of the demonstration anew, in 90 minutes; weights in OUTPUT/tiny
# make test    unit tests and the golden cases of narrow networks (MB_SHARED=folder for those that need shared material)
# make lint    style, types, spelling
#
# Each makes .venv and installs what it needs where that was not done yet. It takes Python 3.10 or newer.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
TOOLS  := $(VENV)/.installed-dev

.PHONY: install demo tiny test lint

install: $(TOOLS)

$(READY): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable .
	touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python -m maskrcnn_benchmark.demo

# one thread a process: with another number of them sums are added in another order, and weights differ in their last digits
LESSON := OMP_NUM_THREADS=1 $(BIN)/python -m maskrcnn_benchmark.demo.encoders
TRAIN  := OMP_NUM_THREADS=1 $(BIN)/python tools/train_net.py --num-gpus 2 --skip-test --config-file
START  := OUTPUT/tiny/pictures.safetensors OUTPUT/tiny/text.safetensors

tiny: | $(READY)
	$(MAKE) -j 2 $(START) DATASET/tiny
	$(LESSON) --lessons together --weights $(START) --out OUTPUT/tiny/encoders.safetensors
	$(TRAIN) configs/tiny/fiber_tiny_first.yaml MODEL.WEIGHT OUTPUT/tiny/encoders.safetensors
	$(TRAIN) configs/tiny/fiber_tiny.yaml MODEL.WEIGHT OUTPUT/tiny/first/model_final.pth
	$(BIN)/mrb export OUTPUT/tiny/model_final.pth --ema --out OUTPUT/tiny/fiber_tiny.safetensors

OUTPUT/tiny/%.safetensors:
	$(LESSON) --lessons $* --out $@

DATASET/tiny:
	rm -rf $@.part
	$(BIN)/python -m maskrcnn_benchmark.demo.lessons --out $@.part
	mv $@.part $@

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not full"

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
