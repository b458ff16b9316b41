"""TRL 1.16's DPO on one batch, in a process of its own (the other tests import TRL 1.12).

    python trl_dpo.py POLICY REFERENCE ROWS.jsonl OUT.npz DTYPE BETA CASES

Writes the batch that its collator makes and, of each case, the loss, the metrics and the gradient
of every parameter. CASES is JSON, by name: "rows" of the batch, and what is set in the trainer.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from datasets import Dataset
from trl import DPOConfig, DPOTrainer


def main(policy, reference, rows, out, dtype, beta, cases):
    load = lambda folder: hf.AutoModelForCausalLM.from_pretrained(folder).to(getattr(torch, dtype))
    lines = Path(rows).read_text(encoding="utf-8").splitlines()
    data = Dataset.from_list([json.loads(line) for line in lines])
    with tempfile.TemporaryDirectory() as scratch:
        arguments = DPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=len(data),
            beta=float(beta),
            max_length=None,
            gradient_checkpointing=False,
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        trainer = DPOTrainer(
            model=load(policy),
            ref_model=load(reference),
            args=arguments,
            train_dataset=data,
            processing_class=hf.AutoTokenizer.from_pretrained(policy),
        )
        batch = trainer.data_collator(list(trainer.train_dataset))
        trainer.model.eval()  # no dropout; it is 0 in these models anyway
        tensors = {f"batch/{name}": value.numpy() for name, value in batch.items()}
        for name, case in json.loads(cases).items():
            found = of_case(trainer, batch, **case)
            tensors |= {f"{name}/{key}": value for key, value in found.items()}
    np.savez(out, **tensors)


def of_case(trainer, batch, *, rows=(), **settings):
    """Loss, metrics and gradients; of a part of the batch if ``rows`` names one."""
    for name, value in settings.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    B = len(batch["input_ids"]) // 2  # chosen answers, then rejected ones
    index = [*rows, *(B + row for row in rows)] if rows else slice(None)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {k: v[index] for k, v in batch.items()})
    loss.backward()
    parameters = trainer.model.named_parameters()
    grads = {f"grad/{n}": p.grad.numpy().copy() for n, p in parameters if p.grad is not None}
    metrics = {f"metric/{k}": np.mean(v) for k, v in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    return {"loss": loss.detach().numpy(), **grads, **metrics}


if __name__ == "__main__":
    main(*sys.argv[1:])
