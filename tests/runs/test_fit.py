"""A run fits its data and its model: lengths, what they cut, warm-up and batches."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax.config import (
    DPOConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PPOConfig,
    RewardConfig,
    SFTConfig,
)
from rlhf_jax.data import fates
from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.lengths import choose_lengths
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.runs.fit import (
    check_cut,
    check_pace,
    choose_packing,
    fit_answers,
    fit_context,
    fit_lengths,
)
from rlhf_jax.runs.trained import trained_lengths
from rlhf_jax.training.optimizers import make_schedule, warmup_steps
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.types import ComparisonBatch


@pytest.fixture(scope="module")
def tokenizer():
    """One id per byte, so that lengths are known."""
    return train_bpe([], vocab_size=258)


# --- lengths --------------------------------------------------------------------------------------


def choose(prompts, answers, **options):
    return choose_lengths(np.array(prompts), np.array(answers), **{"context": 100} | options)


def test_lengths_are_the_longest_rounded_up():
    assert choose([3, 17], [30, 2]) == (24, 32)
    assert choose([0], [0]) == (8, 8)
    assert choose([3], [30], prompt_length=5) == (5, 32)


def test_lengths_within_a_context_lose_as_few_rows_as_can_be():
    prompts, answers = [10] * 50 + [70], [60] * 50 + [5]
    P, R = choose(prompts, answers)
    assert P + R == 100 and P >= 10 and R >= 60
    assert choose([30], [33], context=64) == (31, 33)  # exact, where rounding up does not fit
    assert choose([90], [90], prompt_length=30) == (30, 70)
    assert choose([90], [90], response_length=30) == (70, 30)
    assert choose([90], [90], prompt_length=80, response_length=40) == (80, 40)  # refused later
    with pytest.raises(InputError, match=r"prompt_length=100 .* no room .* context of 100"):
        choose([90], [90], prompt_length=100)
    with pytest.raises(InputError, match=r"response_length=120 leaves no room for prompts"):
        choose([90], [90], response_length=120)


def rows(*lengths):
    return [Demonstration("p" * prompt, "a" * (answer - 1)) for prompt, answer in lengths]


def fitted(tokenizer, demonstrations, context=100, **given):
    uncut = fates.of_demonstrations(
        demonstrations, tokenizer, prompt_length=None, response_length=None
    )
    return fit_lengths(SFTConfig(**given), uncut, context=context, stage="sft")


def test_a_config_gets_what_its_data_need(tokenizer, capsys):
    config = fitted(tokenizer, rows((5, 20), (12, 3)))
    assert (config.prompt_length, config.response_length) == (16, 24)
    assert "sft: prompts of 16 and answers of 24 tokens, of a context of 100" in (
        capsys.readouterr().err
    )
    given = dict(prompt_length=3, response_length=4)
    assert fitted(tokenizer, rows((5, 20)), **given) == SFTConfig(**given)


def cut(tokenizer, demonstrations, context=100, **given):
    config = fitted(tokenizer, demonstrations, context, **given)
    lengths = dict(prompt_length=config.prompt_length, response_length=config.response_length)
    report = fates.count(fates.of_demonstrations(demonstrations, tokenizer, **lengths))
    check_cut(report, config, context=context, stage="sft")
    return report


def test_more_than_two_percent_cut_is_refused_with_the_flags_that_keep_them(tokenizer):
    data = rows(*[(5, 5)] * 97, (9, 5), (5, 17), (9, 17))
    with pytest.raises(InputError) as error:
        cut(tokenizer, data, prompt_length=8, response_length=16)
    assert str(error.value) == (
        "3 of 100 rows do not fit: 1 prompt cut, 2 left out (answer over response_length); "
        "--prompt-length 9 --response-length 17 keeps them all, or go on with --allow-cut True "
        "(in a chain --sft.allow-cut True)"
    )
    assert cut(tokenizer, data, prompt_length=9, response_length=17).over == 0
    assert cut(tokenizer, data, prompt_length=8, response_length=16, allow_cut=True).over == 3
    assert cut(tokenizer, data[:99], prompt_length=8, response_length=17).over == 1  # about 1 %


def test_rows_that_no_flag_keeps_say_so(tokenizer):
    with pytest.raises(InputError, match=r"prompt has 80 tokens and the longest answer 90.* 100: "):
        cut(tokenizer, rows((80, 2), (2, 90)))


def test_answers_are_as_the_policy_learnt_them(tmp_path):
    (tmp_path / "model.json").write_text(
        '{"lengths": {"prompt_length": 8, "response_length": 40, "block_size": 48}}'
    )
    assert trained_lengths(tmp_path) == {"prompt_length": 8, "response_length": 40}
    elsewhere = tmp_path / "none"
    assert trained_lengths(elsewhere) == {}
    assert fit_answers(PPOConfig(), elsewhere, tmp_path).response_length == 40
    assert fit_answers(PPOConfig(response_length=7), tmp_path).response_length == 7
    planned = fit_context(fit_answers(PPOConfig(), elsewhere), 100)
    assert (planned.prompt_length, planned.response_length) == (68, 32)


def test_lengths_that_are_not_known_yet_are_not_checked():
    model = ModelConfig(context=8)
    model.check_context(prompt_length=8, response_length=None)
    with pytest.raises(InputError, match=r"prompt_length=9 is over model.context=8"):
        model.check_context(prompt_length=9, response_length=None)


# --- warm-up and batches --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 19, 20, 1000])
@pytest.mark.cases(1)
def test_warm_up_is_a_share_of_the_run(steps):
    """On four pairs DPO has one step, at the full rate."""
    optim = DPOConfig().optim
    assert warmup_steps(optim, steps) == steps // 20
    rates = [float(make_schedule(optim, steps)(step)) for step in range(steps)]
    assert max(rates) == pytest.approx(optim.lr) and sum(rates) >= optim.lr / 2
    assert warmup_steps(replace(optim, warmup_steps=7), steps) == 7


def test_a_run_that_cannot_learn_says_so(capsys):
    check_pace("dpo", 10, rows=4, batch_size=4, optim=OptimConfig(warmup_steps=9))
    assert capsys.readouterr().err == ""
    check_pace("sft", 10, rows=3, batch_size=4, of="packed rows of 64 tokens")
    assert "3 packed rows of 64 tokens are fewer than a batch of 4" in capsys.readouterr().err
    check_pace("dpo", 10, rows=3, batch_size=4, optim=OptimConfig(lr=0.5, warmup_steps=10))
    assert capsys.readouterr().err == (
        "dpo: 3 rows are fewer than a batch of 4: each step sees all\n"
        "dpo: optim.warmup_steps=10, but the run has 10: its learning rate never gets to "
        "optim.lr=0.5\n"
    )
    with pytest.raises(InputError, match=r"only update is at .* of 0; give --optim.warmup-steps 0"):
        check_pace("dpo", 1, optim=OptimConfig(warmup_steps=20))
    check_pace("dpo", 1, optim=OptimConfig(warmup_steps=20, warmup_init=0.1))
    with pytest.raises(InputError, match="so many epochs are 2147483648 steps, at most 2147483647"):
        check_pace("dpo", 2**31, optim=OptimConfig())


# --- packing --------------------------------------------------------------------------------------


def ranked(query: int, answers: list[int], *, prompts: int = 10):
    """Comparisons [10 + 3 × 20] of so many real tokens; an answer of 0 is absent."""
    lengths = np.array(answers)
    mask = np.broadcast_to(np.arange(20) < lengths[:, None], (prompts, 3, 20))
    query_mask = np.broadcast_to(np.arange(10) >= 10 - query, (prompts, 10))
    ranks = np.broadcast_to(np.where(lengths > 0, np.arange(3), -1), (prompts, 3))
    return ComparisonBatch(query_mask.astype(int), query_mask, mask.astype(int), mask, ranks)


ONE = make_parallel(ParallelConfig(devices=1))
SPLIT = ONE._replace(mesh=SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 1}))
PACKING = {
    # 3 × (5 + 8) tokens read 4/3 times in rows of which a tenth is empty: 57.8 positions of a
    # prompt, beside 10 + 3 × 20 of padded rows, which share the query.
    "less work than padded rows": (None, 5, [8, 8, 8], ONE, "0.83", True),
    "more work than padded rows": (None, 8, [10, 10, 10], ONE, "", False),
    "more work, but asked for": (True, 8, [10, 10, 10], ONE, "1.14", True),
    "less work, but not wanted": (False, 5, [8, 8, 8], ONE, "", False),
    "absent answers have no query": (None, 8, [15, 0, 0], ONE, "0.49", True),
    "weights would be gathered for each block": (None, 5, [8, 8, 8], SPLIT, "", False),
    "gathered, but asked for": (True, 5, [8, 8, 8], SPLIT, "0.83", True),
}


@pytest.mark.parametrize("case", PACKING.values(), ids=PACKING)
def test_answers_are_packed_where_it_is_less_work(case, capsys):
    packing, query, answers, parallel, work, chosen = case
    found = choose_packing(packing, ranked(query, answers), parallel, stage="dpo")
    assert found == chosen
    said = f"dpo: answers are packed: {work} of the work of padded rows\n"
    assert capsys.readouterr().err == (said if chosen else "")


def test_packing_has_no_dropout():
    with pytest.raises(InputError, match=r"packing=True excludes dropout=0.1"):
        RewardConfig(packing=True, dropout=0.1)
