"""The doctor's checks of tokenizer, prompts, demonstrations and comparisons."""

from itertools import islice

import jax
import numpy as np

from rlhf_jax.config.data import column_names
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.encoding import encode_demonstrations, encode_prompts
from rlhf_jax.data.fates import of_comparisons
from rlhf_jax.data.formats import Account, Comparison, Demonstration, Prompt, iterate
from rlhf_jax.data.hub import is_hub_name
from rlhf_jax.doctor import invariants_data as of_data
from rlhf_jax.doctor.invariants import Finding, not_run
from rlhf_jax.doctor.patient import EPISODES, Episodes, Patient
from rlhf_jax.errors import known
from rlhf_jax.runs.fit import fit_demonstrations
from rlhf_jax.types import LMBatch

ROWS = 20_000
"""Prompts and demonstrations read."""

EVERY_CHARACTER = "".join(
    map(chr, (*range(0x801), *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x10000)))
)
"""Text in which every byte that UTF-8 knows occurs."""


def tokenizer_findings(p: Patient, prompts: list[Prompt]) -> list[Finding]:
    """Whether texts come back, ids have embeddings, and prompts and answers fit."""
    t, length, context = p.policy.tokenizer, known(p.ppo.prompt_length), p.policy.model.context
    texts = [as_text(row.prompt) for row in prompts]
    ids = t.encode_prompts([row.prompt for row in prompts])
    batch, report = encode_prompts(prompts, t, query_length=length, everything=True)
    return [
        of_data.padding_is_not_the_end(t.pad_id, t.end_ids),
        of_data.text_comes_back(t.encode, t.decode, [*texts, EVERY_CHARACTER]),
        of_data.bytes_have_ids(t.decode_bytes([i]) for i in range(t.vocab_size)),
        of_data.ids_fit_the_embedding([*ids, [*t.bos_ids, *t.end_ids]], rows=p.policy.vocab_size),
        of_data.episodes_fit(length + known(p.ppo.response_length), context=context),
        of_data.prompts_fit(report.cut.get("prompt", 0), len(texts), length=length, bound=0.05),
        of_data.queries_keep_the_end(
            np.asarray(batch.queries[:-1]),
            np.asarray(batch.query_mask[:-1]),
            ids,
            bos_id=t.named_bos_id,
        ),
    ]


def demonstration_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether the end of text is in SFT's loss, was learnt from it, and is sampled."""
    r = episodes.rollout
    ended = np.any(np.isin(r.responses, p.policy.tokenizer.end_ids) & r.mask, axis=1)
    untrained = not_run("the end of text is learnt", "no finished SFT run")
    sampled = of_data.answers_end(int(ended.sum()), len(r.mask), bound=0.5)
    if p.sft is None or not (is_hub_name(p.sft.data) or p.sft.data.exists()):
        reason = f"{p.sft.data} is not there" if p.sft else f"{p.ppo.init} names no demonstrations"
        return [not_run("demonstrations", reason), untrained if "policy" in p.fresh else sampled]
    columns = column_names(p.sft.columns)
    rows = list(islice(iterate(p.sft.data, Demonstration, columns=columns), ROWS))
    c = fit_demonstrations(p.sft, rows, p.policy.tokenizer, context=p.policy.model.context)
    batch, report = encode_demonstrations(
        rows,
        p.policy.tokenizer,
        block_size=known(c.block_size),
        prompt_length=known(c.prompt_length),
        response_length=known(c.response_length),
        target="response",
    )
    findings = [
        of_data.ends_are_targets(
            np.asarray(batch.tokens),
            np.asarray(batch.loss_mask),
            end_ids=p.policy.tokenizer.end_ids,
            demonstrations=report.kept,
        ),
        of_data.demonstrations_fit(
            sum(report.left_out.values()), len(rows), length=known(c.response_length), bound=0.25
        ),
    ]
    if "policy" in p.fresh:
        return [*findings, untrained]
    first = LMBatch(*(leaf[:EPISODES].astype(np.int32) for leaf in batch))
    first = first._replace(loss_mask=first.loss_mask.astype(bool))
    logits_fn = jax.jit(lambda params, batch: p.lm.packed_logits(params, batch, None))
    # Logits at a position are of the next token: the last ones have none to be compared with.
    likeliest = np.asarray(logits_fn(p.policy.params, first).argmax(axis=-1))[:, :-1]
    ends = np.isin(first.tokens[:, 1:], p.policy.tokenizer.end_ids) & first.loss_mask[:, 1:]
    right = int((likeliest == first.tokens[:, 1:])[ends].sum())
    return [*findings, of_data.ends_are_predicted(right, int(ends.sum()), bound=0.5), sampled]


def comparison_findings(p: Patient) -> list[Finding]:
    """On ids, as the reward model sees the answers: other texts may have the same, once cut."""
    path = p.comparisons
    if path is None or not (is_hub_name(path) or path.exists()):
        reason = f"{path} is not there" if path else "the reward model's run names none"
        return [not_run("comparisons", reason)]
    account = Account()
    rows = list(iterate(path, Comparison, account, column_names(p.comparison_columns)))
    length = p.ppo.response_length
    row_fates = list(
        of_comparisons(rows, p.reward.tokenizer, prompt_length=None, response_length=length)
    )
    by_ids = [(tuple(f.query), tuple(map(tuple, f.responses)), f.ranks) for f in row_fates]
    agree = of_data.comparisons_agree(of_data.find_conflicts(by_ids), bound=0.05)
    useless = sum(fate.why is not None for fate in row_fates) + len(account.left_out)
    total = len(rows) + len(account.left_out)
    return [*agree, of_data.rankings_rank(useless, total, bound=0.1)]
