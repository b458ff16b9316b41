"""The quickstart's chain with a toy model, a handful of steps and little of the real text."""

import json
from dataclasses import replace
from pathlib import Path

from tiny import part_of_the_data

from configs import quickstart
from experiments import compare, ppo, pretrain, reward, sft

LINES = {
    "sft_sentence_polarity/sentences.jsonl": 1600,
    "sft_movie_reviews/reviews_neg.jsonl": 80,
    "sft_movie_reviews/reviews_pos.jsonl": 80,
    "text_gutenberg/alice.txt": 1000,
}


def little_quickstart(folder: Path):
    """The quickstart with a toy model and a handful of steps, on the least of the real text."""
    c = quickstart.get_config()
    text = replace(c.pretrain.data, weights=())
    run = lambda stage, **changes: replace(
        stage,
        run=replace(stage.run, save_every=3, log_every=1, eval_every=4, tensorboard=False),
        **changes,
    )
    model = replace(c.pretrain.model, n_layers=1, d_model=16, n_heads=2)
    cut = dict(allow_cut=True)  # a small vocabulary makes rows long
    return replace(
        c,
        dir=folder,
        source=part_of_the_data(folder.parent / "source", LINES),
        corpora=("polarity",),
        pretrain=run(
            c.pretrain,
            data=text,
            model=model,
            steps=8,
            eval_batches=1,
            tokenizer=replace(c.pretrain.tokenizer, vocab_size=600),
        ),
        sft=run(c.sft, pretrain_data=text, batch_size=6, epochs=1, heldout_fraction=0.8, **cut),
        compare=run(
            c.compare,
            num_prompts=40,
            heldout_prompts=16,
            responses_per_prompt=4,
            prompts_per_batch=8,
            **cut,
        ),
        reward=run(c.reward, batch_size=4, **cut),
        ppo=run(
            c.ppo,
            iterations=7,
            batch_size=16,
            ptx_batch_size=4,
            ptx_data=replace(c.ppo.ptx_data, weights=()),
            force=True,
            kl=replace(c.ppo.kl, target=0.5, horizon=100.0),
            optim=replace(c.ppo.optim, ema_decay=0.9),
            **cut,
        ),
        evaluate=run(
            c.evaluate, text=text, num_prompts=32, best_of=(2,), batch_size=32, text_batches=1
        ),
        ablations=False,
    )


STAGES = {"pretrain": pretrain, "sft": sft, "comparisons": compare, "reward": reward, "ppo": ppo}


def stages(c):
    return dict(zip(STAGES, (c.pretrain, c.sft, c.compare, c.reward, c.ppo), strict=True))


def outcome(folder: Path) -> str:
    """What must be the same: final parameters, or the comparisons that were collected."""
    done = json.loads((folder / "DONE").read_text())
    return done.get("params_sha256") or (folder / "train.jsonl").read_text()
