"""TRL 1.16's losses of GRPO and RLOO, in a process of its own (the other tests import TRL 1.12).

    python trl_kin.py IN.npz OUT.npz CASES

The trainers' own ``_compute_loss`` is given log-probs in place of a model. IN.npz holds the arrays;
CASES is JSON, by name: what is set in the trainer. Their advantages stand inline in
``_generate_and_score_completions`` and are said again here, with the lines they stand on.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import nanstd


def main(given, out, cases):
    arrays, found = dict(np.load(given)), {}
    for dtype in ("float32", "float64"):
        tensors = {
            name: torch.tensor(x.astype(dtype) if x.dtype.kind == "f" else x)
            for name, x in arrays.items()
        }
        for name, case in json.loads(cases).items():
            loss, gradient = of_case(tensors, **case)
            found |= {f"{dtype}/{name}/loss": loss, f"{dtype}/{name}/grad": gradient}
        returns = tensors["returns"]
        found |= {
            f"{dtype}/grpo": grpo_advantages(returns, scale=True),
            f"{dtype}/dr_grpo": grpo_advantages(returns, scale=False),
            f"{dtype}/rloo": rloo_advantages(returns),
        }
    np.savez(out, **{name: x.detach().numpy() for name, x in found.items()})


def grpo_advantages(returns, *, scale):
    """Lines 2764-2787 of grpo_trainer.py."""
    mean, std = torch.nanmean(returns, dim=1, keepdim=True), nanstd(returns, dim=1)[:, None]
    advantages = returns - mean
    return advantages / (std + 1e-4) if scale else advantages


def rloo_advantages(returns):
    """Lines 1685-1690 of rloo_trainer.py."""
    total, count = torch.nansum(returns, dim=1, keepdim=True), returns.shape[1]
    return returns - (total - returns) / (count - 1)


def of_case(tensors, *, trainer="grpo", **settings):
    """(loss, its gradient with respect to the new log-probs)"""
    new = tensors["new"].clone().requires_grad_()
    mask = tensors["mask"].long()
    nothing = torch.zeros_like(mask)
    inputs = dict(
        prompt_ids=nothing,
        prompt_mask=nothing,
        completion_ids=nothing,
        completion_mask=mask,
        advantages=tensors["advantages"],
        old_per_token_logps=tensors["old"],
        old_logps=(tensors["old"] * mask).sum(1),
        ref_per_token_logps=tensors["ref"],
        num_items_in_batch=mask.sum(),
    )
    same = lambda x, **_: x
    this = SimpleNamespace(
        **dict(loss_type="grpo", importance_sampling_level="token", beta=0.0),
        **dict(epsilon_low=0.2, epsilon_high=0.2, args=SimpleNamespace(delta=None)),
        **dict(aux_loss_enabled=False, off_policy_mask_threshold=None, use_vllm=False),
        **dict(top_entropy_quantile=1.0, _entropy_bonus_enabled=False),
        current_gradient_accumulation_steps=1,
        max_completion_length=mask.shape[1],
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=same, reduce=same, num_processes=1),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
    )
    this.args.use_bias_correction_kl = False
    this.args.delta = settings.pop("delta", None)
    vars(this).update(settings)
    kind = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[trainer]
    loss = kind._compute_loss(this, None, inputs)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss, gradient


if __name__ == "__main__":
    main(*sys.argv[1:])
