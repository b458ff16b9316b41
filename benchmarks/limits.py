"""The shortest time in which a case could be done on a machine of given speed.

Matrix products at the best GEMM rate that either side reached in the same call, or the bytes that
must be read at the rate of a plain read, whichever takes longer. Attention, normalisation, softmax
and the optimizer count as free, so a fraction of 1 cannot be reached.
"""

from benchmarks.cases import EPOCHS, SHAPES, Case


def trunk_parameters(case: Case) -> int:
    """Weights of the blocks: 12 d² each."""
    s = SHAPES[case.shape]
    return 12 * s.n_layers * s.d_model**2


def head_parameters(case: Case) -> int:
    """Weights of the vocabulary: V · d."""
    s = SHAPES[case.shape]
    return s.vocab_size * s.d_model


def generation_seconds(case: Case, *, gflops: float, gbs: float) -> float:
    """Prefill, then per token every weight and the cache read once, or 2 N FLOP per row."""
    s = SHAPES[case.shape]
    size = 2 if case.arrays == "bfloat16" else 4
    weights = trunk_parameters(case) + head_parameters(case)
    prefill = 2 * (trunk_parameters(case) * case.prompt + head_parameters(case)) * case.batch
    steps = case.answer_length - 1
    cache = 2 * s.n_layers * s.d_model * case.batch * (case.prompt + steps / 2)
    read = size * (weights + cache) / (gbs * 1e9)
    compute = 2 * weights * case.batch / (gflops * 1e9)
    return prefill / (gflops * 1e9) + steps * max(read, compute)


def training_seconds(case: Case, *, gflops: float) -> float:
    """6 N FLOP per token (forward 2 N, backward 4 N); a reward model's head is free."""
    head = 0 if case.suite == "reward" else head_parameters(case)
    tokens = case.batch * case.length
    return 6 * (trunk_parameters(case) + head) * tokens / (gflops * 1e9)


def ppo_seconds(case: Case, *, gflops: float, gbs: float) -> float:
    """Sampling, one scoring pass of value, reference and reward network, and the updates.

    Only response positions go through a head. With adapters the frozen kernels need no gradient of
    their own: 4 N FLOP instead of 6 N.
    """
    tokens, answers = case.batch * (case.prompt + case.length), case.batch * case.length
    trunk = trunk_parameters(case) * tokens
    head = head_parameters(case) * answers
    scoring = 2 * (3 * trunk + head)
    trained = 2 if case.variant == "separate" else 1
    factor = 4 if case.variant == "lora" else 6
    updates = EPOCHS * factor * (trained * trunk + head)
    sampling = generation_seconds(case, gflops=gflops, gbs=gbs)
    return sampling + (scoring + updates) / (gflops * 1e9)


def limit_seconds(case: Case, *, gflops: float, gbs: float) -> float:
    """The limit of a case, whatever its suite."""
    if case.suite == "generate":
        return generation_seconds(case, gflops=gflops, gbs=gbs)
    if case.unit == "episodes":
        return ppo_seconds(case, gflops=gflops, gbs=gbs)
    return training_seconds(case, gflops=gflops)
