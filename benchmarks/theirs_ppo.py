"""An iteration of TRL 1.12's PPOTrainer, one at a time."""

import os
import threading
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import datasets
import torch
import transformers as hf
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks import inputs
from benchmarks.cases import (
    B1,
    B2,
    CLIP_EPS,
    EOS,
    EPOCHS,
    EPS,
    KL_COEF,
    LAMBDA,
    LR,
    MINIBATCHES,
    VF_COEF,
    Case,
)
from benchmarks.theirs import response_logprobs, wait
from benchmarks.worker import Work


class Turns:
    """Holds the trainer at the start of each iteration until it is told to go on."""

    def __init__(self):
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.failed: list[BaseException] = []

    def wait(self) -> None:
        """The trainer's thread: say that it is here, and wait for its turn."""
        self.arrived.release()
        self.go.acquire()

    def run(self, train) -> None:
        """``train`` in a thread, up to its first iteration."""

        def guarded():
            try:
                train()
            except BaseException as error:  # to be raised where it is waited for
                self.failed.append(error)
                self.arrived.release()

        threading.Thread(target=guarded, daemon=True).start()
        self._reach()

    def next(self) -> None:
        """One whole iteration."""
        self.go.release()
        self._reach()

    def _reach(self) -> None:
        self.arrived.acquire()
        if self.failed:
            raise self.failed[0]


def make_ppo(case: Case, folder: Path) -> Work:
    """An iteration of PPOTrainer."""
    # TRL builds an Accelerator of its own that ignores its bf16 argument; it reads this one.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if case.arrays == "bfloat16" else "no"
    policy, reference = (hf.GPT2LMHeadModel.from_pretrained(folder / "lm") for _ in range(2))
    scalar = hf.GPT2ForSequenceClassification
    value, reward = (scalar.from_pretrained(folder / "scalar") for _ in range(2))
    queries = torch.tensor(inputs.prompts(case)).long()
    both = torch.cat([queries, torch.tensor(inputs.answers(case)).long()], dim=1)
    with torch.inference_mode():
        checks = {
            "logprob": response_logprobs(reference.eval(), both, case.prompt).mean().item(),
            "score": reward.eval()(input_ids=both).logits.mean().item(),
        }
    for model in (policy, reference, value, reward):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    words = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token=f"<{EOS}>",
        pad_token=f"<{EOS}>",
        padding_side="left",
    )
    rows = datasets.Dataset.from_dict({"input_ids": inputs.prompts(case).tolist()})
    trainer = PPOTrainer(
        args=make_config(case, folder),
        processing_class=words,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
    )
    turns, sample = Turns(), ppo_trainer.batch_generation

    def held(*arguments):
        turns.wait()
        return sample(*arguments)

    ppo_trainer.batch_generation = held
    turns.run(trainer.train)

    def repeat():
        turns.next()
        wait(case)
        last = trainer.state.log_history[-1]
        return {"kl": last["objective/kl"]}

    return Work(repeat, checks, lambda: {"compile_seconds": 0.0})


def make_config(case: Case, folder: Path) -> PPOConfig:
    """Its settings, as near to ours as it has them."""
    return PPOConfig(
        output_dir=str(folder / "trl"),
        report_to="none",
        save_strategy="no",
        use_cpu=case.device == "cpu",
        bf16=False,
        disable_tqdm=True,
        num_sample_generations=0,
        total_episodes=case.batch * 10_000,
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=MINIBATCHES,
        num_ppo_epochs=EPOCHS,
        response_length=case.length,
        stop_token="eos" if case.end == "early" else None,
        temperature=1.0,
        kl_coef=KL_COEF,
        gamma=1.0,
        lam=LAMBDA,
        cliprange=CLIP_EPS,
        cliprange_value=CLIP_EPS,
        vf_coef=VF_COEF,
        learning_rate=LR,
        adam_beta1=B1,
        adam_beta2=B2,
        adam_epsilon=EPS,
        weight_decay=0.0,
        missing_eos_penalty=None,
        dataloader_num_workers=0,
    )
