"""Run folders as the experiments write them, without running any, and what a page holds."""

import json
from html.parser import HTMLParser

import numpy as np

XSS = '</td><script>alert("x")</script><img src=x onerror=alert(1)>&amp;'
CHINESE = "这部电影非常好看，演员的表演令人难忘。"
BIDI = "safe\u202etxt.exe\u2066"
CORPORA = ("gutenberg", "reviews")
GOLD = {"sft": (0.4, 0.2), "ppo": (0.8, 0.12), "ppo_without_ptx": (0.81, 0.12)}
KL = {"sft": 0.0, "ppo": 4.2, "ppo_without_ptx": 4.6, "best_of_4": 0.64, "best_of_16": 1.84}


# --- run folders ----------------------------------------------------------------------------------


def make_stage(folder, name, seed, *, config=(), done=None, metrics=(), samples=()):
    path = folder / name
    path.mkdir(parents=True)
    run = {"dir": f"{folder}/{name}", "seed": seed, "data_seed": 0, "save_every": 200}
    record = {
        "schema": 1,
        "stage": name.split("_")[0],
        "config_class": "X",
        "config": {"run": run, "init": f"{folder}/sft", **dict(config)},
        "argv": ["/home/ann/rlhf_jax/experiments/instructgpt.py", "--seed", str(seed)],
        "config_digest": "c0ffee" * 10,
        "git": {"sha": "0123456789abcdef" * 2, "dirty": True},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8"},
        "platform": "Linux-6.1-x86_64",
        "devices": ["cpu:0 cpu"],
        "processes": 1,
    }
    (path / "config.json").write_text(json.dumps(record))
    lines = lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(lines(metrics), encoding="utf-8")
    (path / "samples.jsonl").write_text(lines(samples), encoding="utf-8")
    if done is not None:
        summary = {"seconds": 61.5 + seed, "peak_memory_mib": 1290, **done}
        (path / "DONE").write_text(json.dumps(summary))
    return record


def language_metrics(rng, steps, every, names):
    rows = []
    for step in range(20, steps + 1, 20):
        loss = 4.2 + 3 * np.exp(-step / 200) + rng.normal(0, 0.06)
        rows.append(
            {
                "step": step,
                "time": step / 6,
                "loss": loss,
                "grad_norm": 0.8,
                "tokens_per_second": 8e3,
            }
        )
        if step % every == 0:
            rows.append({"step": step, "time": step / 6, **{n: loss + 0.1 for n in names}})
    return rows


def ppo_metrics(rng, ptx):
    rows = []
    for step in range(1, 29):
        t = step / 28
        row = {
            "objective/scores": 2.3 * t + rng.normal(0, 0.06),
            "objective/kl": 4.4 * t**1.3 + rng.normal(0, 0.05),
            "policy/entropy_avg": 3.1 - 0.7 * t,
            "val/var_explained": 0.7 * (1 - np.exp(-5 * t)),
            "policy/approxkl_avg": 0.01 + rng.normal(0, 0.001),
            "policy/clipfrac_avg": 0.09 + rng.normal(0, 0.01),
            "loss/value_avg": 0.3 - 0.1 * t,
            "policy/grad_norm": 0.5 + rng.normal(0, 0.05),
            "response_length": 24 - 2 * t,
            "episodes_per_second": 160.0,
            "objective/kl_coef": None,
        }
        if ptx:
            row |= {"loss/ptx_avg": 4.6 + 0.04 * t, "policy/ptx_grad_norm": 0.4}
        rows.append({"step": step, "time": step * 3.0, **row})
    return rows


def answers(rng, policy, texts):
    mean, spread = GOLD[policy]
    return [
        {
            "step": 0,
            "policy": policy,
            "prompt": f"The film {i} {CHINESE if i == 1 else ''}",
            "response": texts[i] if i < len(texts) else f"{policy} answer number {i} , which is .",
            "score": float(rng.normal(5 * mean - 2, 1)),
            # The first prompts gain most, so that they are shown.
            "gold": 10 * mean if i < 3 else float(np.clip(rng.normal(mean, spread), 0, 1)),
            "kl": KL[policy],
            "length": 22,
        }
        for i in range(100)
    ]


def policy_row(rng, name):
    gold = {"best_of_4": 0.6, "best_of_16": 0.7}.get(name) or GOLD[name][0]
    gold += rng.normal(0, 0.01)
    figure = lambda mean, ci: {"mean": mean, "ci": ci, "n": 256}
    return {
        "gold": figure(gold, 0.02),
        "gold_gain_in_sd": 5 * (gold - 0.4),
        "gold_difference": figure(gold - 0.4, 0.025) | {"low": gold - 0.42, "high": gold - 0.37},
        "win_rate": figure(0.5 if name == "sft" else 0.9, 0.03),
        "win_rate_at_equal_length": figure(0.5 if name == "sft" else 0.88, 0.04),
        "score": figure(5 * gold - 2, 0.1),
        "kl": figure(KL[name], 0.2 if "ppo" in name else 0.0),
        "length": figure(22.5, 0.6),
        "ended": 0.93,
        "distinct_2": 0.72,
        "repeated_words": 0.11,
        "perplexity_by_baseline": figure(21.5, 1.5),
        "judges": {"second classifier": figure(gold - 0.1, 0.03), "lexicon": figure(0.3, 0.03)},
    }


CHANGE_CI = 0.015
TEXT = {"pretrain": 4.4, "sft_without_mix": 4.7, "sft": 4.5, "ppo_without_ptx": 5.0, "ppo": 4.6}


def make_run(folder, seed, *, stages=7, kl_coef=0.25):
    """A chain of the first ``stages`` stages, as the experiments write it."""
    rng = np.random.default_rng(seed)
    nats = [f"eval/{c}/nats_per_token" for c in CORPORA]
    bits = {f"eval/{c}/bits_per_byte": 1.86 for c in CORPORA}
    heldout = {name: 4.4 for name in nats} | bits
    make = lambda name, **rest: make_stage(folder, name, seed, **rest)
    sha = {"params_sha256": f"{seed}abcdef0123456789"}
    bins = [
        {"predicted": 0.5 + i / 20 + 0.02, "observed": 0.5 + i / 25, "count": 900 - 80 * i}
        for i in range(9)
    ]
    text = {
        model: {f"eval/{c}/{unit}": loss for c in CORPORA for unit in ("nats_per_token",)}
        for model, loss in TEXT.items()
    }
    change = {
        model: {
            key: {"mean": loss - TEXT["pretrain"], "ci": CHANGE_CI, "n": 32} for key in text[model]
        }
        for model, loss in TEXT.items()
        if model != "pretrain"
    }
    chain = [
        lambda: make(
            "pretrain",
            done={"steps": 1400, "heldout": heldout, "parameters": 1_325_824, **sha},
            metrics=language_metrics(rng, 1400, 200, nats),
        ),
        lambda: make(
            "sft",
            done={"steps": 400, "heldout": {"eval/loss": 4.18}, **sha},
            metrics=language_metrics(rng, 400, 200, ["eval/loss"]),
        ),
        lambda: make("comparisons", done={"comparisons": 3000, "noise_ceiling": 0.75}),
        lambda: make(
            "reward",
            done={
                "steps": 375,
                "heldout": {"eval/accuracy": 0.71, "eval/margin": 0.6, "eval/ece": 0.02},
                "calibration": bins,
                **sha,
            },
            metrics=[
                {"step": t, "time": t, "loss": 0.6, "accuracy": 0.6 + t / 4000, "margin": 0.4}
                for t in range(20, 376, 20)
            ]
            + [{"step": 200, "time": 200, "eval/accuracy": 0.69, "eval/margin": 0.5}],
        ),
        lambda: make(
            "ppo",
            config={"kl": {"coef": kl_coef}},
            done={"steps": 28, "kl_coef": kl_coef, **sha},
            metrics=ppo_metrics(rng, True),
            samples=[{"step": 4 * i, "prompt": "p", "response": f"r{i}"} for i in (1, 2)],
        ),
        lambda: make("ppo_without_ptx", done={"steps": 28}, metrics=ppo_metrics(rng, False)),
        lambda: make(
            "evaluate",
            config={"task": "sentiment"},
            done={
                "baseline": "sft",
                "policies": {name: policy_row(rng, name) for name in KL},
                "text": text,
                "text_change": change,
            },
            samples=[
                row
                for policy, texts in (("sft", [XSS, CHINESE, BIDI]), ("ppo", ["", XSS + CHINESE]))
                for row in answers(rng, policy, texts)
            ],
        ),
    ]
    for build in chain[:stages]:
        record = build()
    if stages == len(chain):
        summary = {k: v for k, v in record.items() if not k.startswith("config")}
        summary |= {"config_digest": "feed" * 16, "seconds": 512.4, "peak_memory_mib": 1290}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(HTMLParser):
    """Ids, tags, outside references and the texts of the answers."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.tags, self.outside, self.answers, self.table_rows = [], [], [], [], []
        self._row = None
        self._text = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("src", "href", "xlink:href", "data", "action"):
            if name in attributes and not attributes[name].startswith("#"):
                self.outside.append(attributes[name])
        if attributes.get("class") == "text":
            self.answers.append("")
        self._text = attributes.get("class") == "text"
        if tag == "tr":
            self.table_rows.append([])
        if tag in ("td", "th") and self.table_rows:
            self.table_rows[-1].append("")
            self._row = self.table_rows[-1]

    def handle_endtag(self, tag):
        self._text = False
        if tag in ("td", "th"):
            self._row = None

    def handle_data(self, data):
        if self._text:
            self.answers[-1] += data
        if self._row:
            self._row[-1] += data

    def row(self, name, at=0):
        return [row for row in self.table_rows if row and row[0].strip() == name][at]
