"""TRL 1.16's DPO on one batch, in a process of its own (the other tests import TRL 1.12).

    python trl_dpo.py POLICY REFERENCE ROWS.jsonl OUT.npz DTYPE BETA

Writes the batch that its collator makes, the loss, the metrics and the gradient of every parameter.
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


def main(policy, reference, rows, out, dtype, beta):
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
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    tensors = {f"batch/{name}": value.numpy() for name, value in batch.items()}
    tensors |= {
        f"grad/{name}": p.grad.numpy()
        for name, p in trainer.model.named_parameters()
        if p.grad is not None
    }
    metrics = {f"metric/{k}": np.mean(v) for k, v in trainer._metrics["eval"].items()}
    np.savez(out, loss=loss.detach().numpy(), **tensors, **metrics)


if __name__ == "__main__":
    main(*sys.argv[1:])
