"""The first sentences of the report: what was trained, whether it worked, and what it cost.

Whether it worked is read from the 95 % interval of the win rate against the baseline by gold score:
all of it above one half, all of it below, or neither, which shows nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_jax.evaluation.numbers import percent, show, with_unit
from rlhf_jax.report.page import (
    Group,
    Groups,
    Row,
    done_figures,
    estimate,
    is_brought_in,
    look_up,
    name_of,
)
from rlhf_jax.report.policies import baseline_of, policies_of
from rlhf_jax.report.tax import largest_tax, reference

TRAINED = {
    "pretrain": "pretraining",
    "sft": "SFT",
    "reward": "a reward model",
    "ppo": "PPO",
    "dpo": "DPO",
}
"""Stage that trains something → how it stands in a list."""


def lead(groups: Groups) -> list[str]:
    """The verdict, then what belongs to it; of several groups a paragraph each with both."""
    if len(groups) == 1:
        return [part for part in (verdict(groups[0], groups), costs(groups[0])) if part]
    return [f"{verdict(group, groups)} {costs(group)}".rstrip() for group in groups]


# --- verdict --------------------------------------------------------------------------------------


class Between(NamedTuple):
    """A figure with the ends of its 95 % interval; they are NaN if it is not known."""

    mean: float
    low: float
    high: float


def verdict(group: Group, groups: Groups) -> str:
    """The sentences of a group: what was trained, whether it worked, and what to doubt."""
    trained, policy = what_was_trained(group), judged_policy(group)
    named = f"{group.label}: " if len(groups) > 1 else ""
    rate = share_interval(done_figures(group, "evaluate", "policies", policy, "win_rate"))
    if rate is None:
        return f"{named}{trained}; whether it worked is not known: {why_unknown(group)}."
    outcome = f"{named}{trained}{conclusion(rate)}: {comparison(group, policy, rate)}"
    return outcome + doubts(group, policy, rate)


def conclusion(rate: Between) -> str:
    """Whether it worked, by the 95 % interval of the win rate."""
    if rate.low > 0.5:
        return ", and it worked"
    if rate.high < 0.5:
        return ", and it made the answers worse"
    return "; that it worked is not shown"


def comparison(group: Group, policy: str, rate: Between) -> str:
    """Who beat whom on how many prompts, and the interval."""
    figures = done_figures(group, "evaluate", "policies", policy, "win_rate")
    prompts = {look_up(figure, "n") for figure in figures} - {None}
    of = f"{prompts.pop()} held-out prompts" if len(prompts) == 1 else "the held-out prompts"
    over = f"over {len(figures)} seeds, " if len(figures) > 1 else ""
    winner, other = (name_of(name, group, [group]) for name in (policy, baseline_of(group)))
    theirs = f"those of {other}" if " " in other else f"{other}'s"  # "the model as it came's"
    return (
        f"by gold score, {winner}'s answers beat {theirs} on {percent(rate.mean)} of {of} "
        f"({over}95 % interval {percent(rate.low)} to {percent(rate.high)})"
        if rate.low <= rate.high
        else f"by gold score, {winner}'s answers beat {theirs} on {percent(rate.mean)} of "
        f"{of} (an interval was not recorded)"
    )


def doubts(group: Group, policy: str, rate: Between) -> str:
    """The end of the sentence: what the interval leaves open."""
    if not rate.low <= rate.high:
        return "."
    if rate.low <= 0.5 <= rate.high:
        return "; one half, which is no difference, lies within it."
    gain = between(done_figures(group, "evaluate", "policies", policy, "gold_difference"))
    if gain and gain.low <= 0 <= gain.high:
        return (
            f". The mean gold score, though, is not shown to differ ({signed(gain.mean)}, 95 % "
            f"interval {signed(gain.low)} to {signed(gain.high)})."
        )
    return "."


def what_was_trained(group: Group) -> str:
    """The subject and its stages: "A model of 1.3M parameters went through pretraining"."""
    brought_in = any(is_brought_in(run.stages) for run in group.runs)
    stages = [s for s in TRAINED if any(s in run.stages for run in group.runs)]
    stages = [s for s in stages if s != "sft" or not brought_in]
    finished = [s for s in stages if done_figures(group, s)]
    sizes = ["sft", *finished] if brought_in else finished
    counts = [n for s in sizes for n in done_figures(group, s, "parameters")]
    size = f" of {with_unit(counts[0])} parameters" if counts else ""
    runs = len(group.runs)
    subject = (
        f"A model{size}" if runs == 1 else f"{runs} models{size}, each with a seed of its own,"
    )
    tasks = {run.recipe.task for run in group.runs} - {""}
    on = f" on the task “{tasks.pop()}”" if len(tasks) == 1 else ""
    be = "was" if runs == 1 else "were"
    if not finished:
        started = "brought in" if brought_in else "started"
        return f"{subject} {be} {started}{on} and no stage of its training has finished"
    went = f"that {be} there already went" if brought_in else "went"
    return f"{subject} {went} through {listed([TRAINED[s] for s in finished])}{on}"


def why_unknown(group: Group) -> str:
    """What is missing to say so."""
    if any("evaluate" in run.stages for run in group.runs):
        if policies_of(group):
            return "no trained policy was compared with another one"
        return "its evaluation has not finished"
    return "it has not been evaluated"


def judged_policy(group: Group) -> str:
    """PPO, or else the last policy that is neither the baseline nor picked from its answers."""
    trained = [p for p in policies_of(group) if not p.startswith("best_of_")]
    others = [p for p in trained if p != baseline_of(group)]
    return "ppo" if "ppo" in others else next(reversed(others), "")


def between(figures: Sequence[Any]) -> Between | None:
    """Over seeds if there are several, else the ends that the one evaluation recorded."""
    value = estimate(figures)
    if value is None:
        return None
    mean, ci = value["mean"], value.get("ci")
    ci = float("nan") if ci is None else ci
    return Between(mean, value.get("low", mean - ci), value.get("high", mean + ci))


def share_interval(figures: Sequence[Any]) -> Between | None:
    """``between`` of a share: few seeds make an interval that is wider than what can be."""
    interval = between(figures)
    return interval and Between(interval.mean, max(interval.low, 0.0), min(interval.high, 1.0))


# --- what else the reader must know ---------------------------------------------------------------


def costs(group: Group) -> str:
    """Gold and KL, exploited errors of the reward model, people, and the alignment tax."""
    policy = judged_policy(group)
    if not policy:
        return ""
    sentences = [gold_and_kl(group, policy), exploited(group, policy), by_people(group, policy)]
    return " ".join(filter(None, [*sentences, tax(group, policy)]))


def gold_and_kl(group: Group, policy: str) -> str:
    """How the gold score changed, and at what KL; empty if not measured."""

    def figure(*path: str) -> Row | None:
        return estimate(done_figures(group, "evaluate", "policies", *path))

    first, last = figure(baseline_of(group), "gold"), figure(policy, "gold")
    if not first or not last:
        return ""
    change, kl = figure(policy, "gold_difference"), figure(policy, "kl")
    difference = f" ({show(change, sign=True)})" if change else ""
    at = f" at a KL of {show(kl)} nats from {name_of(baseline_of(group), group, [group])}"
    return (
        f"The mean gold score went from {show({'mean': first['mean']})} to "
        f"{show({'mean': last['mean']})}{difference}{at if kl else ''}."
    )


def exploited(group: Group, policy: str) -> str:
    """Whether the reward model's score rose while gold fell."""
    before, after = (
        estimate(done_figures(group, "evaluate", "policies", name, "score"))
        for name in (baseline_of(group), policy)
    )
    gold = between(done_figures(group, "evaluate", "policies", policy, "gold_difference"))
    if before is None or after is None or gold is None:
        return ""
    if not (after["mean"] > before["mean"] and gold.high < 0):
        return ""
    return (
        f"The reward model's score rose from {show(before)} to {show(after)} while gold fell: "
        "the policy exploits the reward model's errors."
    )


def by_people(group: Group, policy: str) -> str:
    """What people preferred where they judged; empty if they did not."""
    figures = done_figures(group, "evaluate", "policies", policy, "win_rate_by_people")
    rate = share_interval(figures)
    if rate is None:
        return ""
    caveat = "" if rate.low > 0.5 or rate.high < 0.5 else ", which shows no difference"
    return (
        f"People preferred its answers on {percent(rate.mean)} of the prompts that they judged "
        f"(95 % interval {percent(rate.low)} to {percent(rate.high)}{caveat})."
    )


def tax(group: Group, policy: str) -> str:
    """The corpus on which the policy lost most; empty if not measured."""
    largest = largest_tax(group, policy)
    if largest is None or policy == reference(group):
        return ""
    corpus, change = largest
    first = name_of(reference(group), group, [group])
    ends = between([change])
    is_zero = ends is not None and ends.low <= 0 <= ends.high
    caveat = ", not shown to differ from 0" if is_zero else ""
    most = "lost most on" if change["mean"] > 0 else "lost on no corpus, and gained least on"
    return (
        f"On held-out text it {most} {corpus}: {show(change, sign=True)} nats per token against "
        f"{first}{caveat}."
    )


def signed(value: float) -> str:
    """A number with its sign."""
    return show(value, sign=True)


def listed(words: Sequence[str]) -> str:
    """The words in a row: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
