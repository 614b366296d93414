PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
# Files of tests in several processes. The networks in them are so small that a second thread of torch only waits.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help install test long faults cuda gpu-wheels demo docs bench clean

help:
	@echo "make demo   install into .venv, then train, evaluate, detach and export on the digits (a minute after the install)"
	@echo "make test   install into .venv, then run ruff, mypy and pytest"
	@echo "make long   install into .venv, then run the tests that take minutes: exports of every family, all of torchvision"
	@echo "make docs   install into .venv, then build the documentation as a site; open site/index.html"
	@echo "make faults install into .venv, then test a million broken files and every fault of a disk (an hour)"
	@echo "make cuda   install into .venv, then run the tests that need CUDA"
	@echo "make gpu-wheels  fill gpu-wheels/, from which benchmarks/gpu.sh installs on a machine without a network"
	@echo "make bench  install into .venv, then time steps, start-up and inference (10 minutes, 13 GB of memory)"
	@echo "make clean  remove .venv, $(DEMO) and site"

install: .venv/installed

# pip would compile all of torch, which doubles the time; Python compiles what it imports.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -e ".[dev]"
	touch $@

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS)

long: install
	$(BIN)/pytest -m long

faults: install
	$(BIN)/pytest -m faults -s

cuda: install
	$(BIN)/pytest -m cuda

gpu-wheels: install
	$(BIN)/python benchmarks/gpu_wheels.py

demo: install
	$(BIN)/cnsn train --arch vgg16:width=0.25 --exits 2,7 --data digits --recipe quick --out $(DEMO) --force
	$(BIN)/cnsn eval $(DEMO)/best.safetensors
	$(BIN)/cnsn detach $(DEMO)/best.safetensors --submodel 1 -o $(DEMO)/small.safetensors --force
	$(BIN)/cnsn eval $(DEMO)/small.safetensors
	$(BIN)/cnsn export $(DEMO)/small.safetensors --to onnx -o $(DEMO)/small.onnx --force
	$(BIN)/cnsn eval $(DEMO)/small.onnx

docs: install
	$(BIN)/pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: install
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/inference.py

clean:
	rm -rf .venv $(DEMO) site
