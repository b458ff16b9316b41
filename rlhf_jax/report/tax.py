"""What alignment cost on held-out text, with the intervals of the changes."""

from rlhf_jax.evaluation.numbers import show
from rlhf_jax.report.page import (
    Group,
    Groups,
    Row,
    Section,
    Table,
    done_figures,
    estimate,
    look_up,
    name_of,
)
from rlhf_jax.report.policies import baseline_of

TAX_ORDER = ("pretrain", "sft_without_mix", "sft", "ppo_without_ptx", "ppo")
UNITS = ("nats_per_token", "bits_per_byte")
DECIMALS = 3


def tax_section(groups: Groups) -> Section:
    """What every model loses on held-out text, and what ptx gives back."""
    tables = [tax_table(groups, unit) for unit in UNITS]
    references = dict.fromkeys(name_of(reference(g), g, [g]) for g in groups if reference(g))
    text = [
        "Loss of each model on held-out text, and in parentheses its change from "
        f"{' or '.join(references)}.",
        interval_text(groups),
        *(given_back(group, groups) for group in groups),
    ]
    tables = [table for table in tables if table.rows]
    return Section("tax", "Alignment tax", [part for part in text if part], (), tables)


def interval_text(groups: Groups) -> str:
    """What ± means in the tables, or why there is none."""
    if any(len(done_figures(group, "evaluate", "text")) > 1 for group in groups):
        return "± is the 95 % interval over runs that differ in their seed only."
    changes = [c for group in groups for c in done_figures(group, "evaluate", "text_change")]
    counts = [f["n"] for of in changes for model in of.values() for f in model.values()]
    counts = [n for n in counts if n > 1]
    if not counts:
        return "The evaluation did not record intervals of these changes."
    low, high = min(counts), max(counts)
    return (
        "± is the 95 % interval of the change over the "
        f"{low if low == high else f'{low} to {high}'} batches of text of each corpus, on which "
        "both models were measured; what another seed would change is not in it."
    )


def tax_table(groups: Groups, unit: str) -> Table:
    """Losses of all models on all corpora, in one unit."""
    rows = []
    corpora = list(dict.fromkeys(c for group in groups for c in corpora_of(group, unit)))
    for group in groups:
        models = measured(group)
        models = [m for m in TAX_ORDER if m in models] + [m for m in models if m not in TAX_ORDER]
        for model in models if corpora else ():
            cells = [tax_cell(group, model, f"eval/{c}/{unit}") for c in corpora]
            rows.append((name_of(model, group, groups), *cells))
    title = f"Loss on held-out text, {unit.replace('_', ' ')}; less is better."
    return Table(title, ("model", *corpora), rows, folded=unit != UNITS[0])


def measured(group: Group) -> list[str]:
    """Models whose loss on text was measured."""
    return list(dict.fromkeys(m for text in done_figures(group, "evaluate", "text") for m in text))


def reference(group: Group) -> str:
    """The pretrained model if it was measured, else the evaluation's baseline."""
    return "pretrain" if "pretrain" in measured(group) else baseline_of(group)


def corpora_of(group: Group, unit: str) -> list[str]:
    """The corpora that were measured in this unit."""
    texts = done_figures(group, "evaluate", "text")
    names = dict.fromkeys(n for text in texts for losses in text.values() for n in losses)
    return [name.split("/")[1] for name in names if name.endswith(f"/{unit}")]


def tax_cell(group: Group, model: str, key: str) -> str:
    """A loss, and in parentheses its change from the reference."""
    losses = [look_up(text, model, key) for text in done_figures(group, "evaluate", "text")]
    value = show(estimate(losses), decimals=DECIMALS)
    change = tax_change(group, model, key)
    if model == reference(group) or not change:
        return value
    return f"{value} ({show(change, sign=True, decimals=DECIMALS)})"


def tax_change(group: Group, model: str, key: str) -> Row | None:
    """Loss − the reference's: over seeds, or with the interval that the one run recorded."""
    first = reference(group)
    texts = done_figures(group, "evaluate", "text")
    recorded = [look_up(c, model, key) for c in done_figures(group, "evaluate", "text_change")]
    if len(texts) == 1 and recorded and recorded[0]:
        return recorded[0]
    pairs = [(look_up(text, model, key), look_up(text, first, key)) for text in texts]
    return estimate([a - b for a, b in pairs if a is not None and b is not None])


def given_back(group: Group, groups: Groups) -> str:
    """How much of the loss that plain PPO added the ptx term gives back, by corpus."""
    shares = []
    for corpus in corpora_of(group, "nats_per_token"):
        key, shares_of_tax = f"eval/{corpus}/nats_per_token", []
        for text in done_figures(group, "evaluate", "text"):
            sft, plain, ptx = (look_up(text, m, key) for m in ("sft", "ppo_without_ptx", "ppo"))
            if None not in (sft, plain, ptx) and plain > sft:
                shares_of_tax.append((plain - ptx) / (plain - sft))
        if shares_of_tax:
            shares.append(f"{show(estimate(shares_of_tax))} on {corpus}")
    head = name_of("Share of plain PPO's added loss that PPO-ptx gives back", group, groups)
    return f"{head}: {', '.join(shares)}." if shares else ""


def largest_tax(group: Group, model: str) -> tuple[str, Row] | None:
    """The corpus on which a model lost most in nats per token, and the change."""
    changes = [
        (corpus, change)
        for corpus in corpora_of(group, UNITS[0])
        if (change := tax_change(group, model, f"eval/{corpus}/{UNITS[0]}"))
    ]
    return max(changes, key=lambda pair: pair[1]["mean"], default=None)
