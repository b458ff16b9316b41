"""Parts of the report: saved figures, colours and dashes, layout, rounds, recipe, answers."""

import base64
import itertools
import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from report_run import Page, make_run

from experiments.report import group_runs, write
from rlhf_jax.cli import to_dict
from rlhf_jax.config import SFTConfig
from rlhf_jax.feedback import figures
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.standing import add_refusal
from rlhf_jax.report import page as report
from rlhf_jax.report import policies as report_policies
from rlhf_jax.report import stages as report_stages
from rlhf_jax.report import tradeoffs as report_tradeoffs
from rlhf_jax.report.answers import gain, samples_section
from rlhf_jax.report.drawing import INK, as_link, draw, standalone
from rlhf_jax.report.figures import COLORS, DARK_COLORS, Panel, Series, look, smooth
from rlhf_jax.report.page import (
    Feedback,
    Group,
    Recipe,
    RunRecord,
    Section,
    StageRecord,
    caption_width,
    cell,
    figure_columns,
    letter,
    render,
)
from rlhf_jax.report.recipe import recipe_section
from rlhf_jax.report.records import config_lines, read_feedback, typed
from rlhf_jax.report.rounds import rounds_section

SVG = "{http://www.w3.org/2000/svg}"


def series(label, kind="line", shape=0, color=0):
    return Series(label, [0, 1, 2], [0.0, 1.0, 0.5], None, None, kind, color, shape)


# --- figures --------------------------------------------------------------------------------------


def test_a_saved_figure_stands_alone():
    """Title, legend and colours are in it; it is an image without the page's variables."""
    lines = [series("a<b", shape=0), series("faint", "faint"), series("c", "points", 1, 1)]
    panel = Panel("p", "Loss & more", "step", "nats", lines, [("ceiling", 0.7)])
    drawn = draw(panel, 2)
    saved = standalone(panel, drawn)
    root = ElementTree.fromstring(saved)
    texts = ["".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")]
    assert texts[:5] == ["Loss & more", "a<b", "faint", "c", "ceiling"]
    assert {"step", "nats"} < set(texts)
    assert "var(" not in saved and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", saved)
    for color in (*COLORS[:2], INK):
        assert color in saved
    width, height = map(float, root.get("viewBox").split()[2:])
    inner = root.find(f"{SVG}svg")
    assert float(inner.get("y")) + float(inner.get("height")) == pytest.approx(height)
    assert float(inner.get("width")) == pytest.approx(width)
    link = as_link(saved)
    assert base64.b64decode(link.removeprefix("data:image/svg+xml;base64,")).decode() == saved


def test_a_saved_figure_of_one_series_has_no_legend():
    panel = Panel("p", "Loss", "step", "nats", [series("only")])
    texts = ElementTree.fromstring(standalone(panel, draw(panel))).iter(f"{SVG}text")
    assert "only" not in ["".join(node.itertext()) for node in texts]


def test_lines_look_different_in_grey():
    """Of one kind and twenty shapes, no two have the same dash and marker."""
    for kind, count in (("line", 20), ("points", 8), ("dots", 8), ("steps", 4)):
        looks = [look(series("s", kind, shape)) for shape in range(count)]
        assert len(set(looks)) == count, kind


def panels_of(folders):
    groups = group_runs(folders)
    sections = [
        report_tradeoffs.frontier_section(groups),
        report_policies.distribution_section(groups),
        report_stages.reward_section(groups),
        *(report_stages.curve_section(groups, stage) for stage in ("ppo", "sft", "pretrain")),
    ]
    return [panel for section in sections for panel in section.panels]


LOGGED_BY = {
    "groups": {"objective/zero_spread_groups": ["Prompts whose answers score alike"]},
    "dynamic sampling": {
        "sampling/prompts": ["Dynamic sampling: prompts"],
        "sampling/missing_prompts": ["Dynamic sampling: prompts"],
        "sampling/learnt_prompts": ["Dynamic sampling: learnt from"],
    },
    "clipping": {
        "policy/clipfrac_low_avg": ["Clipped ratios"],
        "policy/clipfrac_high_avg": ["Clipped ratios"],
    },
    "older answers": {
        "objective/stale_kl": ["Older answers: their policy"],
        "val/importance_weight": ["Older answers: their weights"],
        "val/importance_ess": ["Older answers: their weights"],
        "val/importance_capped": ["Older answers: their weights"],
    },
    "several rewards": {"objective/length_scores": ["Each reward's score"]},
    "online DPO": {
        "accuracy": ["Pair accuracy"],
        "margin": ["Margin"],
        "logprob_chosen": ["Log π of a pair's answers"],
        "logprob_rejected": ["Log π of a pair's answers"],
        "change_chosen": ["Change of log π: better answers"],
        "change_rejected": ["Change of log π: worse answers"],
        "change_either": ["Change of log π: either answer"],
        "objective/best_reward": ["Best answer to a prompt"],
    },
    "others": {
        "objective/baseline": ["Moving baseline"],
        "loss/kl_avg": ["KL in the loss"],
    },
}


def with_metrics(run, names):
    """``run`` whose PPO has logged each of ``names`` too: of each name other numbers."""
    path = run / "ppo" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {name: n + row["step"] / 100 for n, name in enumerate(names)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize("names", LOGGED_BY.values(), ids=LOGGED_BY)
def test_what_an_algorithm_logs_is_drawn(tmp_path, names):
    """In its panel, with the numbers that were logged, and in no other; without it no panel."""
    plain = panels_of([make_run(tmp_path / "plain", 0)])
    panels = panels_of([with_metrics(make_run(tmp_path / "with", 0), names)])
    here = {panel.title for panel in panels if panel.name.startswith("ppo_")}
    before = {panel.title for panel in plain if panel.name.startswith("ppo_")}
    assert here - before == {t for titles in names.values() for t in titles} - before
    for n, (name, titles) in enumerate(names.items()):
        found = [
            panel.title
            for panel in panels
            if panel.name.startswith("ppo_")
            for series in panel.series
            if np.allclose(series.y[:3], [n + step / 100 for step in (1, 2, 3)])
        ]
        assert found == titles, name


def test_no_two_curves_of_a_panel_look_the_same_in_grey(tmp_path):
    """Of one run, and of two that differ; a faint line goes with the one over it."""
    one = make_run(tmp_path / "a", 0)
    for folders in ([one], [one, make_run(tmp_path / "b", 1, kl_coef=0.5)]):
        for panel in panels_of(folders):
            drawn = [s for s in panel.series if s.kind != "faint"]
            looks = [(s.kind, *look(s)) for s in drawn]
            assert len(set(looks)) == len(looks), f"{panel.title}: {looks}"


VISION = {
    "normal": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    "no red cones": [
        *(0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216),
        *(-0.003882, -0.048116, 1.051998),
    ],
    "no green cones": [
        *(0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413),
        *(-0.011820, 0.042940, 0.968881),
    ],
    "no blue cones": [
        *(1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602),
        *(0.004733, 0.691367, 0.303900),
    ],
}
"""Machado et al. 2009, severity 1, on linear RGB."""


def linear(color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("colors, paper", [(COLORS, "#fefefe"), (DARK_COLORS, "#14161a")])
def test_colours_are_apart_for_the_colour_blind_and_from_the_paper(colors, paper):
    for name, matrix in VISION.items():
        seen = [lab(np.reshape(matrix, (3, 3)) @ linear(color)) for color in colors]
        apart = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert apart > 15, name  # 2.3 is just noticeable
    light = [linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05 for color in (*colors, paper)]
    assert min(max(c, light[-1]) / min(c, light[-1]) for c in light[:-1]) >= 3  # WCAG 1.4.11


def test_smoothing_is_the_mean_of_a_tenth_of_the_curve():
    values = np.arange(100.0)
    smoothed = smooth(values)
    assert smoothed[50] == 50 and smoothed[0] == np.mean(values[:6])
    values[50] = np.nan
    assert smooth(values)[50] == pytest.approx(50)
    assert smooth([1.0, 4.0]).tolist() == [2.5, 2.5]


def test_the_reward_model_has_smoothed_and_held_out_curves(tmp_path):
    groups = group_runs([make_run(tmp_path / "run", 0)])
    section = report_stages.reward_section(groups)
    accuracy = next(p for p in section.panels if p.title == "Pair accuracy")
    raw, smoothed, held_out = accuracy.series
    assert [s.label for s in accuracy.series] == ["training", "training, smoothed", "held out"]
    assert smoothed.y == smooth(raw.y).tolist() and smoothed.x == raw.x
    assert dict(zip(held_out.x, held_out.y, strict=True)) == {200: 0.69, 375: 0.71}
    assert "Faint lines are what training logged" in section.caption


def test_panels_fill_their_rows_or_leave_them_to_the_caption():
    panel = Panel("p", "t", "x", "y", [series("s")])
    for count in range(1, 12):
        panels = [panel] * count
        columns = 2 if count == 1 else figure_columns(panels)
        assert (count + caption_width(panels)) % columns == 0 and columns <= 3
    assert caption_width([panel._replace(rows=("a", "b"))]) == 0


def test_panels_have_letters():
    assert [letter(n) for n in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


def test_an_interval_is_not_broken_and_text_is_escaped():
    assert cell("0.887 ± 0.039") == '0.887 <span class="ci">± 0.039</span>'
    assert cell("4.6 (+0.2 ± 0.01)") == '4.6 (+0.2 <span class="ci">± 0.01</span>)'
    assert cell("<b>\u202e") == "&lt;b&gt;⟦U+202E⟧"


# --- results --------------------------------------------------------------------------------------


def test_the_main_columns_come_first_and_the_others_are_folded():
    """With everything that an evaluation can record, KL is seen and nothing is lost."""
    figure_of = lambda mean, ci=0.05: {"mean": mean, "ci": ci, "n": 256}
    names = [*report_policies.FIGURES, *report_policies.OTHERS]
    policy = {name: figure_of(0.25) for name in names}
    policy |= {"metrics": {f"m{i}": figure_of(1.0) for i in range(4)}}
    policy |= {"pass_at": {"1": figure_of(0.3), "16": figure_of(0.8)}}
    policy |= {"judges": {f"j{i}": figure_of(0.5) for i in range(5)}}
    done = {
        "baseline": "sft",
        "policies": {"sft": policy, "ppo": policy},
        "baselines": {"lead_3": {"gold": figure_of(0.3)}},
    }
    run = RunRecord("r", {}, [], {"evaluate": StageRecord(done, [], [])})
    main, *others = report_policies.results_section([Group("g", [run])]).tables
    titles = [title for table in (main, *others) for title in table.columns[1:]]
    assert len(titles) == len(set(titles)) == len(names) + 4 + 2 + 5
    assert all(len(table.columns) <= 9 for table in (main, *others))
    assert {"win rate", "win rate by people", "gold", "gold gain", "KL (nats)"} < set(main.columns)
    assert not main.folded and all(table.folded for table in others)
    assert main.caption.startswith("Results on 256 held-out prompts. Mean ± 95 % interval")
    assert main.columns[1:4] == ("pass@1", "pass@16", "win rate"), "what a verifiable task is for"
    assert main.rows[1][1:3] == ("0.300 ± 0.050", "0.800 ± 0.050")
    assert main.rows[0][3] == "0.250" and main.rows[1][3] == "0.250 ± 0.050"
    assert main.rows[2][0] == "lead_3 (no model)" and main.rows[2][5] == "0.300 ± 0.050"


# --- answers --------------------------------------------------------------------------------------


def test_without_gold_the_reward_model_says_where_most_was_gained():
    rows = [
        {"policy": policy, "prompt": f"p{i}", "response": f"{policy} {i}", "score": score}
        for policy, scores in (("sft", [0.0, 0.0, 0.0]), ("ppo", [1.0, 2.0, float("nan")]))
        for i, score in enumerate(scores)
    ]
    run = RunRecord("r", {}, [], {"evaluate": StageRecord(None, [], rows)})
    gains, drawn = samples_section([Group("g", [run])]).samples
    assert [prompt for prompt, _ in gains.rows] == ["p1", "p0"] and len(drawn.rows) == 3
    assert "PPO's reward model's score is furthest above SFT's (by 2.00 to 1.00)" in gains.caption
    assert gains.rows[0][1][1].figures == "score 2.00 (+2.00)"
    assert gain((rows[0], rows[5]), "score") is None


# --- rounds of feedback ---------------------------------------------------------------------------


def figure(mean, ci=0.09):
    return {"mean": mean, "ci": ci, "n": 128}


def round_of(number):
    measured = {"gold": figure(-0.19 + 0.2 * number), "score": figure(0.4 * number)}
    measured |= {"kl": figure(0.9 * number), "length": figure(14.0), "texts": []}
    if number == 0:
        return measured | {"labels": 0, "samples": [], "accuracy": None}
    samples = [{"prompt": "p", "before": "dull", "after": f"fine {number}"}]
    return measured | {"labels": 250 * number, "samples": samples, "accuracy": 0.7, "seconds": 1123}


def feedback_of(*rounds, labelers=3, agreement=None):
    rows = [row | {"round": number} for number, row in enumerate(rounds)]
    stages = {"sft": StageRecord(None, [], [])}
    run = RunRecord("r", {}, [], stages, feedback=Feedback(rows, labelers, agreement))
    return rounds_section([Group("g", [run])])


def test_rounds_are_reported_as_recorded():
    section = feedback_of(*map(round_of, range(3)), agreement={"mean": 0.726, "ci": 0.015, "n": 40})
    assert section.text == [
        "2 rounds of labels, 500 labels in all by 3 labelers. Where two labelers ordered the same "
        "pair, they agree on 72.6 % ± 1.5 % (n = 40 pairs).",
        "The policy's gold score was −0.190 ± 0.090 before (round 0) and 0.210 ± 0.090 after round "
        "2.",
    ]
    (table,) = section.tables
    assert table.rows[2] == (
        *("round 2", "500", "0.700", "0.210 ± 0.090", "0.800 ± 0.090"),
        *("1.800 ± 0.090", "14.000 ± 0.090", "18.7"),
    )
    assert table.rows[0][1:3] == ("0", "–") and table.rows[0][-1] == "–"
    gold = section.panels[0].series[0]
    assert (gold.x, gold.y) == ([0, 1, 2], pytest.approx([-0.19, 0.01, 0.21]))
    assert section.samples[0].rows[0][1][1].text == "fine 2"


def test_a_round_that_trained_no_policy_says_why():
    refused = {"round": 1, "labels": 60, "accuracy": 0.52, "half_width": 0.06, "pairs": 48}
    feedback = Feedback([round_of(0) | {"round": 0}], 2, None, [refused | {"gate": 0.55}])
    run = RunRecord("r", {}, [], {}, feedback=feedback)
    section = rounds_section([Group("g", [run])])
    assert section.text[1] == (
        "Round 1 trained no policy on 60 labels: its reward model ordered 52 % ± 6 % of 48 "
        "held-out pairs as people did, and 55 % were asked for (--ppo.min-reward-accuracy)."
    )


def test_newer_rounds_have_an_interval_of_accuracy_and_scores_of_samples():
    row = round_of(1) | {"accuracy_ci": 0.04}
    row["samples"] = [
        {"prompt": "p", "before": "a", "after": "b", "gold": [0.1, 0.5], "score": [-1, 2]}
    ]
    section = feedback_of(round_of(0), row)
    assert section.tables[0].rows[1][2] == "0.700 ± 0.040"
    accuracy = next(p for p in section.panels if p.name == "rounds_accuracy").series[0]
    assert (accuracy.low, accuracy.high) == ([pytest.approx(0.66)], [pytest.approx(0.74)])
    answers = section.samples[0].rows[0][1]
    assert [a.figures for a in answers] == ["gold 0.10 · score −1.00", "gold 0.50 · score 2.00"]


def test_a_difference_that_the_rounds_do_not_show_is_called_so():
    section = feedback_of(round_of(0), round_of(0) | {"gold": figure(-0.15), "labels": 250})
    assert section.text[-1].endswith("after round 1; a difference is not shown.")


@pytest.mark.parametrize(
    "rounds, said",
    [
        ([{"labels": 0, "samples": []}], "0 rounds of labels, 0 labels in all by 1 labeler."),
        (
            [round_of(0) | {"gold": None}, round_of(1) | {"gold": None}],
            "The gold score of the rounds was not measured.",
        ),
    ],
)
def test_rounds_without_figures_are_no_failure(rounds, said):
    section = feedback_of(*rounds, labelers=1)
    assert said in section.text and section.tables


def test_rounds_are_read_from_the_runs_store(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda panel, columns: '<svg viewBox="0 0 1 1"></svg>')
    run = make_run(tmp_path / "run", 0, stages=2)
    assert read_feedback(run) == (None, [])
    (run / "feedback").mkdir()
    database = open_database(run / "feedback" / "store.sqlite")
    assert read_feedback(run) == (None, [])
    for number in range(2):
        figures.add_round(database, number, round_of(number))
    refused = {"labels": 60, "accuracy": 0.52, "half_width": 0.06, "pairs": 48, "gate": 0.55}
    add_refusal(database, 1, refused | {"wait": 250})
    write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Round 1 trained no policy on 60 labels" in text
    page = Page(text)
    assert "rounds" in page.ids and page.row("round 1")[1:3] == ["250", "0.700"]


def test_a_store_that_cannot_be_read_is_missing(tmp_path):
    (tmp_path / "feedback").mkdir()
    (tmp_path / "feedback" / "store.sqlite").write_text("not a database, but long enough for one")
    feedback, missing = read_feedback(tmp_path)
    assert feedback is None and missing[0].startswith("the rounds of feedback (")


# --- how to make it again -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, command",
    [
        (["/home/a/rlhf/experiments/ppo.py", "--seed", "1"], "python -m experiments.ppo --seed 1"),
        (["experiments/proj/x/ppo.py"], "python -m experiments.proj.x.ppo"),
        (["/usr/bin/pytest", "a b"], "/usr/bin/pytest 'a b'"),
    ],
)
def test_commands_are_as_they_are_typed(argv, command):
    assert typed(argv) == command


def test_the_config_names_first_what_differs_from_the_defaults():
    config = json.loads(json.dumps(to_dict(SFTConfig(batch_size=17))))
    own, rest = config_lines({"config": config, "config_class": "SFTConfig"}).split("\n\n")
    assert own == "batch_size = 17"
    assert rest.startswith("# As by default:\n") and "run.log_every = 20" in rest
    unknown = config_lines({"config": {"a": {"b": "é"}}, "config_class": "Gone"})
    assert unknown == 'a.b = "é"'


def test_the_recipe_is_in_the_report(tmp_path):
    section = recipe_section(group_runs([make_run(tmp_path / "run", 3)]))
    command, *configs, cited = section.listings
    assert command.text.splitlines() == [
        "git checkout " + "0123456789abcdef" * 2,
        "# The code had local changes besides this commit.",
        "python -m experiments.instructgpt --seed 3",
    ]
    assert len(configs) == 7 and all(listing.folded for listing in configs)
    assert "run.seed = 3" in configs[0].text
    assert "note = {Commit 0123456789abcdef0123456789abcdef with local changes}" in cited.text
    assert "ouyang2022training" in cited.text and re.search(r"year = \{20\d\d\}", cited.text)


def test_the_citation_is_of_this_version():
    root = pathlib.Path(__file__).parents[2]
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert f'version="{cited}"' in (root / "setup.py").read_text()


def test_a_run_without_a_recorded_command_says_so():
    run = RunRecord("r", {}, [], {}, Recipe())
    section = recipe_section([Group("g", [run])])
    assert section.text == ("The command of this run was not recorded.",)
    assert "note" not in section.listings[0].text.split("@inproceedings")[0]


def test_a_page_of_one_section_has_no_facts_and_no_empty_parts():
    page, tables = render("T", ["First."], [Section("a", "A", ["Text."])])
    assert tables == {} and '<p class="verdict">First.</p>' in page
    assert "<figure>" not in page and '<p class="facts">' not in page
