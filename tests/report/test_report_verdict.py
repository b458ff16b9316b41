"""The first sentences of the report: what was trained, whether it worked, what it cost."""

import pytest

from rlhf_jax.report.page import Group, Recipe, RunRecord, StageRecord
from rlhf_jax.report.verdict import costs, lead, listed, verdict

HEAD = "A model of 1.33M parameters went through pretraining, SFT and PPO on the task “sentiment”"


def run_of(evaluation, *, name="run", stages=("pretrain", "sft", "ppo")):
    """A run whose stages have finished, with what its evaluation recorded (None: not run)."""
    records = {s: StageRecord({"parameters": 1_325_824}, [], []) for s in stages}
    if evaluation is not None:
        records["evaluate"] = StageRecord(evaluation, [], [])
    return RunRecord(name, {}, [], records, Recipe(task="sentiment"))


def group_of(*evaluations, label="g", **rest):
    return Group(label, [run_of(evaluation, **rest) for evaluation in evaluations])


def evaluation(low, rate, high, **ppo):
    """PPO against SFT; Wilson's interval is not symmetric."""
    wins = {"mean": rate, "ci": (high - low) / 2, "low": low, "high": high, "n": 256}
    sft = {"gold": {"mean": -0.19, "ci": 0.08}, "score": {"mean": 0.2, "ci": 0.1}}
    rows = {"sft": sft, "ppo": {"win_rate": wins, **ppo}, "best_of_4": {"win_rate": wins}}
    return {"baseline": "sft", "policies": rows}


@pytest.mark.parametrize(
    "low, rate, high, conclusion",
    [
        (0.843, 0.887, 0.921, f"{HEAD}, and it worked: "),
        (0.364, 0.531, 0.691, f"{HEAD}; that it worked is not shown: "),
        (0.5, 0.6, 0.7, f"{HEAD}; that it worked is not shown: "),
        (0.12, 0.2, 0.3, f"{HEAD}, and it made the answers worse: "),
    ],
)
def test_first_sentence(low, rate, high, conclusion):
    group = group_of(evaluation(low, rate, high))
    sentence = verdict(group, [group])
    assert sentence.startswith(conclusion)
    figures = f"on {100 * rate:.1f} % of 256 held-out prompts (95 % interval "
    assert figures.replace(".0 %", " %") in sentence
    assert f"{100 * low:.1f} % to {100 * high:.1f} %)".replace(".0 %", " %") in sentence
    assert sentence.endswith("; one half, which is no difference, lies within it.") == (
        low <= 0.5 <= high
    )


def test_a_gain_of_gold_that_is_not_shown_is_said():
    gain = {"mean": 0.05, "low": -0.1, "high": 0.2, "ci": 0.15}
    group = group_of(evaluation(0.6, 0.7, 0.8, gold_difference=gain))
    sentence = verdict(group, [group])
    assert "and it worked" in sentence
    assert sentence.endswith(
        ". The mean gold score, though, is not shown to differ (+0.050, 95 % interval −0.100 to "
        "+0.200)."
    )


def test_over_seeds_the_interval_is_over_them():
    """Two seeds that agree well are far from enough for t with one degree of freedom."""
    group = group_of(evaluation(0.8, 0.85, 0.9), evaluation(0.9, 0.95, 0.97))
    sentence = verdict(group, [group])
    assert sentence.startswith("2 models of 1.33M parameters, each with a seed of its own, went")
    # 0.9 ± 12.706 · 0.0707 / √2
    assert "on 90 % of 256 held-out prompts (over 2 seeds, 95 % interval 26.5 % to 100 %)" in (
        sentence
    )
    assert "not shown" in sentence


@pytest.mark.parametrize(
    "record, stages, end",
    [
        (
            None,
            ("sft",),
            "went through SFT on the task “sentiment”; whether it worked is not known:"
            " it has not been evaluated.",
        ),
        (
            None,
            (),
            "was started on the task “sentiment” and no stage of its training has finished;"
            " whether it worked is not known: it has not been evaluated.",
        ),
        (
            {"baseline": "sft", "policies": {"sft": {}, "best_of_4": {}}},
            ("sft",),
            "no trained policy was compared with another one.",
        ),
    ],
)
def test_what_was_not_evaluated_is_not_judged(record, stages, end):
    group = group_of(record, stages=stages)
    assert verdict(group, [group]).endswith(end)
    assert lead([group]) == [verdict(group, [group])]


def test_an_unfinished_evaluation_is_said():
    records = {"sft": StageRecord({}, [], []), "evaluate": StageRecord(None, [], [])}
    group = Group("g", [RunRecord("r", {}, [], records)])
    assert verdict(group, [group]) == (
        "A model went through SFT; whether it worked is not known: its evaluation has not finished."
    )


def test_an_older_evaluation_without_an_interval():
    record = {"baseline": "sft", "policies": {"sft": {}, "dpo": {"win_rate": {"mean": 0.7}}}}
    group = group_of(record, stages=("sft", "dpo"))
    sentence = verdict(group, [group])
    assert "; that it worked is not shown: by gold score, DPO's answers beat SFT's" in sentence
    assert sentence.endswith("on 70 % of the held-out prompts (an interval was not recorded).")


def test_a_model_that_was_there_already_is_named_in_plain_words():
    group = group_of(evaluation(0.8, 0.85, 0.9))
    group.runs[0].stages["sft"].done["source"] = "somebody's"
    assert "answers beat those of the model as it came on 85 %" in verdict(group, [group])
    several = group._replace(runs=[*group.runs, *group.runs])
    assert "a seed of its own, that were there already went through" in verdict(several, [several])


def test_groups_are_judged_one_by_one():
    groups = [
        group_of(evaluation(0.8, 0.85, 0.9), label="kl.coef=0.1"),
        group_of(evaluation(0.1, 0.15, 0.2), label="kl.coef=2"),
    ]
    first, second = lead(groups)
    assert first.startswith("kl.coef=0.1: A model") and "and it worked" in first
    assert second.startswith("kl.coef=2: A model") and "made the answers worse" in second


def test_what_it_cost():
    record = evaluation(
        0.8,
        0.85,
        0.9,
        gold={"mean": 0.567, "ci": 0.05},
        gold_difference={"mean": 0.758, "low": 0.67, "high": 0.85, "ci": 0.09},
        kl={"mean": 3.378, "ci": 0.321},
        win_rate_by_people={"mean": 0.55, "low": 0.45, "high": 0.65, "ci": 0.1},
    )
    key = "eval/{}/nats_per_token".format
    record["text"] = {"sft": {key("a"): 4.0, key("b"): 5.0}, "ppo": {key("a"): 4.3, key("b"): 5.1}}
    record["text_change"] = {
        "ppo": {key(c): {"mean": m, "ci": 0.2, "n": 32} for c, m in (("a", 0.3), ("b", 0.1))}
    }
    assert costs(group_of(record)) == (
        "The mean gold score went from −0.190 to 0.567 (+0.758 ± 0.090) at a KL of 3.38 ± 0.32 "
        "nats from SFT. People preferred its answers on 55 % of the prompts that they judged "
        "(95 % interval 45 % to 65 %, which shows no difference). On held-out text it lost most "
        "on a: +0.30 ± 0.20 nats per token against SFT."
    )
    record["text_change"]["ppo"][key("a")]["ci"] = 0.4
    assert costs(group_of(record)).endswith("against SFT, not shown to differ from 0.")
    for name in (key("a"), key("b")):
        record["text_change"]["ppo"][name]["mean"] -= 1
    assert "it lost on no corpus, and gained least on a: −0.70 ± 0.40" in costs(group_of(record))


def test_exploited_errors_of_the_reward_model_are_said():
    fell = {"mean": -0.3, "low": -0.4, "high": -0.2, "ci": 0.1}
    figures = dict(gold={"mean": -0.49}, gold_difference=fell, score={"mean": 2.0, "ci": 0.1})
    assert "while gold fell: the policy exploits the reward model's errors." in costs(
        group_of(evaluation(0.1, 0.2, 0.3, **figures))
    )
    rose = fell | {"mean": 0.3, "low": 0.2, "high": 0.4}
    assert "exploits" not in costs(
        group_of(evaluation(0.7, 0.8, 0.9, **figures | {"gold_difference": rose}))
    )


@pytest.mark.parametrize(
    "words, text", [([], ""), (["a"], "a"), (["a", "b"], "a and b"), ("abc", "a, b and c")]
)
def test_lists_read_as_sentences_do(words, text):
    assert listed(words) == text
