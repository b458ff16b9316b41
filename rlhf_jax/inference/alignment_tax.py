"""The alignment tax: the loss of an evaluation's models on held-out text, and how it changed."""

import numpy as np

from rlhf_jax.config import EvaluateConfig
from rlhf_jax.evaluation.metrics import ratio_ci
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.trained import Trained
from rlhf_jax.training.corpora import Corpora, TextLoss, describe_losses, make_text_losses
from rlhf_jax.training.parallel import Parallel


def text_losses(
    config: EvaluateConfig, parallel: Parallel, models: dict[str, Trained], corpora: Corpora
) -> dict[str, dict[str, TextLoss]]:
    """Held-out loss of every model on every corpus: what alignment cost (the tax)."""
    evaluations = {}  # models that are alike share what is encoded and compiled
    losses = {}
    for name, trained in models.items():
        kind = (trained.model, trained.vocab_size, trained.tokenizer.digest)
        if kind not in evaluations:
            evaluations[kind] = make_text_losses(
                make_language_model(trained.model, trained.vocab_size),
                parallel,
                corpora,
                trained.tokenizer,
                config.text,
                batch_size=16,
                max_batches=config.text_batches,
            )
        losses[name] = evaluations[kind](trained.params)
    return losses


def describe_text_loss(losses: dict[str, TextLoss], corpora: Corpora) -> dict[str, float]:
    """A model's losses, and perplexities, which are e^nats.

    Per token of this tokenizer, and per word between spaces by the corpus's bytes per word
    (WikiText's convention, whose texts are cut into words already).
    """
    figures = describe_losses(losses)
    for name, rows in zip(corpora.names, corpora.heldout, strict=True):
        texts = [row.text for row in rows]
        bytes_per_word = sum(len(t.encode()) for t in texts) / sum(len(t.split()) for t in texts)
        nats_per_byte = figures[f"eval/{name}/bits_per_byte"] * np.log(2)
        figures[f"eval/{name}/perplexity"] = float(np.exp(figures[f"eval/{name}/nats_per_token"]))
        # Where words are not cut apart, as in Chinese, this would be of whole lines.
        if bytes_per_word < 20:
            word = float(np.exp(nats_per_byte * bytes_per_word))
            figures[f"eval/{name}/word_perplexity"] = word
    return figures


def text_change(losses: dict[str, dict[str, TextLoss]], reference: str) -> dict:
    """Each model's loss − the reference's with its interval, over the batches that both read.

    Left out for models that cut the text otherwise: their batches hold other text.
    """
    changes = {}
    for model, corpora in losses.items():
        for name, loss in corpora.items() if model != reference else ():
            first = losses[reference][name]
            alike = zip((loss.tokens, loss.bytes), (first.tokens, first.bytes), strict=True)
            if all(np.array_equal(*pair) for pair in alike):
                nats = loss.nats - first.nats
                changes.setdefault(model, {}).update(
                    {
                        f"eval/{name}/nats_per_token": ratio_ci(nats, loss.tokens),
                        f"eval/{name}/bits_per_byte": ratio_ci(nats / np.log(2), loss.bytes),
                    }
                )
    return changes
