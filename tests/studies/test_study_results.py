"""Rows and the page: what is stale, unpaired or too little is said and not compared."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs import quickstart
from rlhf_jax.config import StudyConfig
from rlhf_jax.errors import InputError
from rlhf_jax.studies.measures import Measured, Result, gold_over_curve, standard_figures
from rlhf_jax.studies.page import all_figures, compare_arms, write_page
from rlhf_jax.studies.plan import evaluation, plan_seed
from rlhf_jax.studies.results import (
    check_current,
    check_data,
    curves_of,
    read_results,
    rows_of_seed,
    write_results,
)
from rlhf_jax.studies.study import Arm, Study

ROOT = Path("runs/studies/x")
STUDY = Study(
    question="Which is better?",
    base=quickstart.get_config(),
    arms=(Arm("sft"), Arm("best_of_4", best_of=4), Arm("ppo", lambda chain: chain.ppo)),
    baseline="sft",
    compared=("gold", "kl"),
    axes=("kl", "gold"),
)


def make_rows(seeds, *, gains=None):
    """Rows in which the arm has ``gains`` more gold than SFT, give or take a little."""
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        plan, base = plan_seed(STUDY, seed, ROOT), rng.normal()
        for n, (arm, gain) in enumerate((gains or dict(sft=0, best_of_4=1, ppo=0)).items()):
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "changes": plan.changes[arm],
                    "figures": {"gold": base + gain + 0.1 * rng.normal() * (n > 0), "kl": float(n)},
                    "seconds": {"sft": 10.0, **({"arm": 50.0} if arm == "ppo" else {})},
                    "digest": plan.digests[arm],
                    "runs": {"sft-1": f"s{seed}", **({"ppo-1": "p"} if arm == "ppo" else {})},
                    "data": "d",
                    "commit": "abc",
                    "machine": "2 of X",
                    "devices": ["cpu"],
                }
            )
    return rows


def comparisons_of(rows, **options):
    found, left_out = compare_arms(STUDY, rows, all_figures(STUDY, rows), **options)
    return {(each.arm, each.figure): each for each in found}, left_out


def test_rows_are_read_as_they_were_written_and_sorted(tmp_path):
    path, rows = tmp_path / "deep" / "x.jsonl", make_rows(range(3))
    write_results(path, rows[::-1], [arm.name for arm in STUDY.arms])
    assert read_results(path) == rows and read_results(tmp_path / "none.jsonl") == []
    write_results(path, [*rows, rows[0]], [])
    with pytest.raises(InputError, match="two rows of arm sft and seed 0"):
        read_results(path)
    path.write_text(json.dumps({"arm": "sft", "seed": 0}) + "\n")
    with pytest.raises(
        InputError, match=r"x\.jsonl, line 1: no figures, .*expected a row of a study"
    ):
        read_results(path)


def test_a_row_names_all_that_its_figures_were_made_from(tmp_path):
    """Of best-of-n the reward model too, which picks; of the SFT model only what it came from."""
    plan = plan_seed(STUDY, 0, tmp_path)
    job = evaluation(plan, [*plan.policies.values()], tmp_path)
    for each in plan.jobs:
        each.folder.mkdir(parents=True)
        done = {"seconds": 1.0, "params_sha256": f"p-{each.label}"}
        (each.folder / "DONE").write_text(json.dumps(done))
    job.folder.mkdir(parents=True)
    record = {"devices": ["cpu:0 cpu"], "git": None, "machine": "2 of Y"}
    (job.folder / "config.json").write_text(json.dumps(record))
    names = [plan.sft.name, "best_of_4", plan.policies["ppo"].name]
    summary = {"policies": {name: {} for name in names}, "text": {}, "baseline": plan.sft.name}
    (job.folder / "DONE").write_text(json.dumps(summary | {"seconds": 2.0}))
    study = replace(STUDY, measure=lambda measured: {"score": 0.5, "none": float("nan")})
    rows = rows_of_seed(study, plan, job, data="d")
    stages = {row["arm"]: {*row["runs"].values()} for row in rows}
    before = {"p-pretrain", "p-sft"}
    picked = before | {"p-comparisons", "p-reward"}
    assert stages == {"sft": before, "best_of_4": picked, "ppo": picked | {"p-ppo"}}
    assert all(row["figures"] == {"score": 0.5} for row in rows)
    assert {row["machine"] for row in rows} == {"2 of Y"}  # the run's, not whose file this is
    assert [row["seconds"].get("arm") for row in rows] == [None, None, 1.0]


def test_a_row_keeps_the_curves_of_its_training_and_of_its_own_reward_model(tmp_path):
    study = replace(
        STUDY,
        arms=(Arm("sft"), Arm("ppo", lambda chain: chain.ppo)),
        along=("objective/kl", "gold"),
        best_of_curve=(1, 2),
        measure=lambda m: dict.fromkeys([*m.policy, *m.reward], m.curves["best_of_n"]["gold"][1]),
    )
    plan = plan_seed(study, 0, tmp_path)
    job = evaluation(plan, [*plan.policies.values()], tmp_path)
    for each in (*plan.jobs, job):
        each.folder.mkdir(parents=True)
        (each.folder / "config.json").write_text(json.dumps({"devices": ["cpu"], "git": None}))
        (each.folder / "DONE").write_text(json.dumps({"heldout": {"eval/accuracy": 0.7}}))
    logged = [{"step": 1, "objective/kl": 0.123456789, "gold": 1.0}, {"step": 2, "other": 3.0}]
    metrics = plan.policies["ppo"] / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in logged))
    point = {"kl": 0.5, "gold": {"mean": 2.0, "ci": 1.0}, "score": {"mean": 3.0, "ci": 1.0}}
    policy = {"kl": {"mean": 1.0}, "score": {"mean": 9.0}}
    summary = {
        "policies": {plan.sft.name: policy, plan.policies["ppo"].name: policy},
        "text": {},
        "baseline": plan.sft.name,
        "best_of_curve": {"task": [{"n": 1, **point}, {"n": 2, **point}]},
    }
    (job.folder / "DONE").write_text(json.dumps(summary))
    sft, ppo = rows_of_seed(study, plan, job, data="d")
    best = {"n": [1, 2], "kl": [0.5, 0.5], "gold": [2.0, 2.0], "score": [3.0, 3.0]}
    trained = {"objective/kl": [0.12346], "gold": [1.0]}
    assert sft["curves"] == {"best_of_n": best}
    assert ppo["curves"] == {"training": trained, "best_of_n": best}
    # The scores of an evaluation by the reward models of all arms are nobody's.
    assert ppo["figures"] == {"kl": 2.0, "eval/accuracy": 2.0}
    with pytest.raises(InputError, match=r"no objective/golt is logged; expected one of gold, "):
        rows_of_seed(replace(study, along=("objective/golt",)), plan, job, data="d")


def smaller(chain):
    model = replace(chain.pretrain.model, d_model=64)
    return replace(chain, pretrain=replace(chain.pretrain, model=model))


def test_each_arm_has_the_curve_of_its_own_reward_model(tmp_path):
    arms = [Arm("a", lambda chain: chain.ppo)]
    arms += [Arm("b", lambda chain: chain.ppo, reward_from=smaller)]
    study = replace(STUDY, arms=tuple(arms), baseline="a", best_of_curve=(1,))
    plan = plan_seed(study, 0, tmp_path)
    job = evaluation(plan, [*plan.policies.values()], tmp_path)
    point = {"n": 1, "kl": 0.0, "gold": {"mean": 0.5}}
    curves = {
        plan.rewards[arm].name: [point | {"score": {"mean": score}}]
        for arm, score in {"a": 1.0, "b": 2.0}.items()
    }
    found = [curves_of(study, plan, job, arm, curves)["best_of_n"] for arm in arms]
    assert [curve["score"] for curve in found] == [[1.0], [2.0]]


def test_a_page_has_the_tables_that_the_study_asks_for(tmp_path):
    drawn = []
    study = replace(
        STUDY,
        tables={"What it is worth": ("gold", "none")},
        names={"gold": "worth"},
        findings="Nothing yet.",
        draw=lambda study, results, path: drawn.append((sorted(results), path)),
    )
    config = StudyConfig(file=Path("configs/studies/mine.py"), results=tmp_path)
    page = write_page(study, make_rows(range(2)), config).read_text()
    table = page.partition("### What it is worth")[2].partition("\n## ")[0]
    assert "| arm | n | worth |" in table and "KL from SFT" not in table
    assert drawn == [(["best_of_4", "ppo", "sft"], tmp_path / "mine_curves")]
    assert "(mine_curves.png)" in page and "## What it shows\n\nNothing yet.\n" in page


def test_stale_rows_are_named():
    rows, plans = make_rows(range(2)), {seed: plan_seed(STUDY, seed, ROOT) for seed in range(2)}
    check_current(Path("x.jsonl"), rows, plans)
    check_data(Path("x.jsonl"), rows, "d")
    rows[-1]["digest"] = "another"
    with pytest.raises(InputError, match=r"stale rows, .*: ppo \(seed 1\);"):
        check_current(Path("x.jsonl"), rows, plans)
    with pytest.raises(InputError, match="rows of arms that the study file has not: gone"):
        check_current(Path("x.jsonl"), [rows[0] | {"arm": "gone"}], plans)
    with pytest.raises(InputError, match=r"other files of the task .*: ppo \(seed 1\)"):
        check_data(Path("x.jsonl"), [*rows[:-1], rows[-1] | {"data": "e"}], "d")


@pytest.mark.slow
def test_an_effect_is_shown_and_none_is_not():
    found, left_out = comparisons_of(make_rows(range(8)))
    assert found["best_of_4", "gold"].verdict == "higher" and not left_out
    assert found["ppo", "gold"].verdict == "not shown"
    assert found["best_of_4", "gold"].difference.mean == pytest.approx(1, abs=0.2)
    # Holm over all comparisons of the study: the largest p is multiplied by one, others by more.
    ps = sorted((each.difference.p, each.p_holm) for each in found.values())
    assert len(ps) == 4 and ps[-1][0] == ps[-1][1] and ps[2][1] == pytest.approx(2 * ps[2][0])


@pytest.mark.slow
def test_few_pairs_are_not_compared_unless_told():
    found, _ = comparisons_of(make_rows(range(4)))
    assert found["ppo", "gold"].difference is None
    assert "4 pairs of seeds: expected at least 5" in found["ppo", "gold"].verdict
    found, _ = comparisons_of(make_rows(range(4)), few=True)
    assert found["best_of_4", "gold"].verdict == "higher"


def test_a_page_of_one_seed_claims_nothing(tmp_path):
    config = StudyConfig(file=Path("configs/studies/mine.py"), results=tmp_path)
    page = write_page(STUDY, make_rows([3]), config).read_text()
    assert "Nothing is compared yet (not compared: 1 pair of seeds: expected at least 5" in page
    assert (
        "| verdict |" not in page
        and "±" not in page.partition("## Against")[0].partition("| n |")[2]
    )
    assert "n = 1 seed, which has no interval" in (tmp_path / "mine.svg").read_text()


@pytest.mark.slow
def test_arms_of_one_seed_whose_sft_differs_are_no_pair():
    """The same config on another machine: what both were made from came out otherwise."""
    rows = make_rows(range(6))
    next(row for row in rows if row["arm"] == "ppo" and row["seed"] == 2)["runs"]["sft-1"] = "?"
    rows = [row for row in rows if (row["arm"], row["seed"]) != ("sft", 4)]
    found, left_out = comparisons_of(rows, few=True)
    assert found["ppo", "gold"].difference.n == 4 and found["best_of_4", "gold"].difference.n == 5
    assert left_out == [
        "best_of_4 of seed 4, which has no sft",
        "ppo of seed 2, whose sft-1 came out otherwise than that of sft (they were made on other "
        "machines, or by other versions)",
        "ppo of seed 4, which has no sft",
    ]


@pytest.mark.slow
def test_the_page_is_made_of_rows_alone_and_always_the_same(tmp_path):
    config = StudyConfig(file=Path("configs/studies/mine.py"), results=tmp_path, seeds=9)
    rows = make_rows(range(8))
    path = write_page(STUDY, rows, config)
    page = path.read_text()
    line = next(line for line in page.splitlines() if line.startswith("| best_of_4 | gold"))
    assert re.match(r"\| best_of_4 \| gold score \| \+(0\.9|1\.0)", line) and "| higher |" in line
    assert "(n = " not in page and "3 rows of 9 seeds are still missing" in page
    assert "| ppo | 8 |" in page and "50" in page
    for ending in ("png", "svg"):
        first = (tmp_path / f"mine.{ending}").read_bytes()
        write_page(STUDY, rows, config)
        assert (tmp_path / f"mine.{ending}").read_bytes() == first and len(first) > 5000
    drawn = (tmp_path / "mine.svg").read_text()
    assert "KL from SFT, nats" in drawn and "n = 8 seeds" in drawn


def test_gold_at_the_same_kl_is_linear_in_the_root_of_kl():
    figures = {
        "sft": {"kl": -1e-7, "gold_in_sd": 0.0},
        "best_of_4": {"kl": 1.0, "gold_in_sd": 0.5},
        "best_of_9": {"kl": 4.0, "gold_in_sd": 0.9},
        "ppo": {"kl": 2.25, "gold_in_sd": 1.0},
        "far": {"kl": 4.01, "gold_in_sd": 1.0},
        "below": {"kl": -0.01, "gold_in_sd": 0.0},
    }
    results = {arm: Result(own) for arm, own in figures.items()}
    found = gold_over_curve(results, ("sft", "best_of_4", "best_of_9"))
    assert found["ppo"] == {"gold_at_kl": pytest.approx(1.0 - (0.5 + 0.9) / 2)}
    assert found["far"] == found["below"] == found["sft"] == found["best_of_4"] == {}


def test_the_tax_is_over_the_sft_model_in_bits_per_byte():
    policy = {
        name: {"mean": 0.5}
        for name in ("gold", "kl", "win_rate", "win_rate_at_equal_length", "length")
    }
    text = {"eval/a/bits_per_byte": 2.0, "eval/b/bits_per_byte": 3.0, "eval/b/perplexity": 9.0}
    base = {"eval/a/bits_per_byte": 1.5, "eval/b/bits_per_byte": 2.9, "eval/b/perplexity": 8.0}
    figures = standard_figures(Measured("a", policy, text, base, {}))
    assert figures["tax"] == pytest.approx(0.3) and "gold_in_sd" not in figures
    assert "tax" not in standard_figures(Measured("best_of_4", policy, {}, base, {}))
