"""The worker of PyTorch, transformers and TRL: ``python -m benchmarks.theirs CASE FOLDER``.

Settings in its favour: fused AdamW, ``set_to_none`` gradients, ``inference_mode`` for sampling, no
scores kept while sampling (ours returns every token's log-probability), no logging, no saving.
bfloat16 is autocast in training, bfloat16 weights in sampling.
"""

import os
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import transformers as hf

from benchmarks import inputs
from benchmarks.cases import B1, B2, CLIP_NORM, EOS, EPS, LR, WEIGHT_DECAY, Case
from benchmarks.worker import GEMM_SIZE, Limits, Work, best_gbs, best_gflops, serve

DEVICE = {"cpu": "cpu", "gpu": "cuda"}
"""What PyTorch calls a case's device."""


def make_generation(case: Case, folder: Path) -> Work:
    """Sampling by transformers."""
    model = hf.GPT2LMHeadModel.from_pretrained(folder / "lm").eval()
    queries = torch.tensor(inputs.prompts(case)).long()
    both = torch.cat([queries, torch.tensor(inputs.answers(case)).long()], dim=1)
    queries, both = queries.to(DEVICE[case.device]), both.to(DEVICE[case.device])
    model.to(DEVICE[case.device])
    with torch.inference_mode():
        logprob = response_logprobs(model, both, case.prompt).mean().item()
    model.to(getattr(torch, case.arrays))
    options = dict(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=case.length,
        eos_token_id=EOS if case.end == "early" else None,
        pad_token_id=EOS,
    )
    model.generation_config = hf.GenerationConfig(**options)

    def repeat():
        with torch.inference_mode():
            ids = model.generate(queries, attention_mask=torch.ones_like(queries))
            wait(case)
        new = ids[:, case.prompt :]
        if case.end == "never":
            return {"tokens": new.numel()}
        ended = (new == EOS).long().cumsum(1)
        return {"tokens": int((ended - (new == EOS).long() == 0).sum())}

    return Work(repeat, {"logprob": logprob}, lambda: {"compile_seconds": 0.0})


def response_logprobs(model, both, prompt: int):
    """Log-probs of the tokens after the prompt."""
    logits = model(both).logits[:, prompt - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, both[:, prompt:, None])[..., 0]


def make_training(case: Case, folder: Path) -> Work:
    """A step of training by PyTorch."""
    kind = hf.GPT2ForSequenceClassification if case.suite == "reward" else hf.GPT2LMHeadModel
    name = "scalar" if case.suite == "reward" else "lm"
    model = kind.from_pretrained(folder / name).to(DEVICE[case.device])
    model.eval()  # without dropout; gradients are the same
    if case.torch_compile:
        model = torch.compile(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim <= 1]
    groups = [dict(params=decayed, weight_decay=WEIGHT_DECAY), dict(params=kept, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(B1, B2), eps=EPS, fused=True)
    ids = torch.tensor(inputs.rows(case)).long()
    loss_fn = reward_loss if case.suite == "reward" else language_loss
    labels = ids.masked_fill(~torch.tensor(inputs.targets(case, ids.numpy())), -100)
    ids, labels = ids.to(DEVICE[case.device]), labels.to(DEVICE[case.device])
    half = case.arrays == "bfloat16"
    autocast = partial(torch.autocast, DEVICE[case.device], torch.bfloat16) if half else nullcontext

    def step():
        with autocast():
            loss = loss_fn(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(case)
        return {"loss": loss.item()}

    start = time.perf_counter()
    with torch.no_grad(), autocast():
        loss = loss_fn(model, ids, labels).item()
    seconds = time.perf_counter() - start if case.torch_compile else 0.0
    return Work(step, {"loss": loss}, lambda: {"compile_seconds": seconds})


def language_loss(model, ids, labels):
    """The model's own loss."""
    return model(input_ids=ids, labels=labels, use_cache=False).loss


def reward_loss(model, ids, labels):
    """−log σ of the margin of each pair."""
    scores = model(input_ids=ids, use_cache=False).logits.float().reshape(-1, 2)
    return -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()


def wait(case: Case) -> None:
    """Until a GPU has done what it was given."""
    if case.device == "gpu":
        torch.cuda.synchronize()


def gemm(case: Case) -> float:
    """GFLOP/s of PyTorch's matrix product, the best of several."""
    n = GEMM_SIZE[case.device]
    a = torch.ones(n, n, dtype=getattr(torch, case.arrays), device=DEVICE[case.device])

    def product():
        a @ a
        wait(case)

    return best_gflops(product, n)


def stream(case: Case) -> float | None:
    """GB/s of reading a GPU's memory once; None on a CPU, whose own is measured without PyTorch."""
    if case.device == "cpu":
        return None
    x = torch.ones(2**28, device="cuda")

    def read():
        x.sum()
        wait(case)

    return best_gbs(read, x.nbytes)


def peak(case: Case) -> float | None:
    """MiB that tensors on a GPU took at most; None on a CPU, where the process's count."""
    return None if case.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20


def make(case: Case, folder: str) -> Work:
    """The work of a case on their side."""
    # Exact float32 products on a GPU, or of 10 bits.
    torch.set_float32_matmul_precision("high" if case.dtype == "tf32" else "highest")
    if case.suite == "generate":
        return make_generation(case, Path(folder))
    if case.unit == "episodes":
        from benchmarks.theirs_ppo import make_ppo

        return make_ppo(case, Path(folder))
    return make_training(case, Path(folder))


if __name__ == "__main__":
    # Without this, two workers whose turns do not overlap still share cores with spinning threads.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    serve(make, Limits(gemm, stream, peak))
