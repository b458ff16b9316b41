"""The report, on run folders made here."""

import base64
import csv
import json
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from report_run import CHINESE, TEXT, XSS, Page, make_run

from experiments.report import group_runs, write
from rlhf_jax.cli import load
from rlhf_jax.config import ReportConfig
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.numbers import show, with_unit
from rlhf_jax.report import answers as report_answers
from rlhf_jax.report import page as report
from rlhf_jax.report import stages as report_stages
from rlhf_jax.report import tax as report_tax
from rlhf_jax.report.drawing import draw, legend
from rlhf_jax.report.figures import Panel, Series, band, to_csv
from rlhf_jax.report.page import Group, RunRecord, StageRecord, estimate, visible
from rlhf_jax.report.records import CHAIN
from rlhf_jax.runs.logs import read_rows


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(page text, its folder) of one full run."""
    folder = tmp_path_factory.mktemp("full")
    write([make_run(folder / "chain", 0)], folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8"), folder


@pytest.fixture
def undrawn(monkeypatch):
    """For tests that look at the words and tables only: drawing takes most of the time."""
    monkeypatch.setattr(report, "draw", lambda panel, columns: '<svg viewBox="0 0 1 1"></svg>')


# --- one run --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_page_is_one_small_file_without_script_or_network(full):
    text, _ = full
    page = Page(text)
    assert len(text.encode()) < 1_000_000
    assert "script" not in page.tags and "img" not in page.tags
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.outside)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert {m for m in re.findall(r"(?:url\(|href=\")#([^)\"]+)", text)} <= set(page.ids)


@pytest.mark.slow
def test_every_part_is_there(full):
    ids = Page(full[0]).ids
    parts = "results answers frontier distributions tax reward ppo sft pretrain runs recipe"
    assert [i for i in ids if i in parts.split()] == parts.split()


def test_two_rewards_are_drawn_where_a_second_was_measured(tmp_path, undrawn):
    folder = tmp_path / "mixed"
    make_run(folder, 0)
    done = json.loads((folder / "evaluate" / "DONE").read_text())
    for n, figures in enumerate(done["policies"].values()):
        figures["second_score"] = {"mean": 0.25 * n, "ci": 0.1}
    (folder / "evaluate" / "DONE").write_text(json.dumps(done))
    out = tmp_path / "report.html"
    write([folder], out)
    page = out.read_text(encoding="utf-8")
    assert "tradeoff" in Page(page).ids and "second reward model" in page
    text = (tmp_path / "report_data" / "tradeoff.csv").read_text()
    rows = list(csv.reader(text.splitlines()))[1:]
    assert {row[0] for row in rows} >= {"SFT", "PPO", "best of 16"}
    drawn = sorted((float(row[1]), float(row[2])) for row in rows)
    golds = [figures["gold"]["mean"] for figures in done["policies"].values()]
    assert drawn == list(zip([0.0, 0.25, 0.5, 0.75, 1.0], golds, strict=True))


@pytest.mark.slow
def test_quality_against_size_is_drawn_for_runs_of_several_sizes(tmp_path, monkeypatch):
    """Runs of one size share a point; the axis is logarithmic; so for metrics and judges."""
    others = '<svg viewBox="0 0 1 1"></svg>'
    drawn = lambda panel, columns: draw(panel, columns) if panel.name == "size_gold" else others
    monkeypatch.setattr(report, "draw", drawn)
    counts = {"small": 10**5, "large": 10**6, "large_again": 10**6}
    for seed, (name, count) in enumerate(counts.items()):
        make_run(tmp_path / name, seed)
        for stage in ("pretrain", "sft"):
            path = tmp_path / name / stage / "config.json"
            record = json.loads(path.read_text())
            record["config"]["model.d_model"] = count // 10**4
            path.write_text(json.dumps(record))
        path = tmp_path / name / "sft" / "DONE"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": count}))
        path = tmp_path / name / "evaluate" / "DONE"
        done = json.loads(path.read_text())
        for figures in done["policies"].values():
            figures["metrics"] = {"bleu": {"mean": count / 10**6}}
            figures["judges"] = {"second_opinion": {"mean": count / 10**6}}
        path.write_text(json.dumps(done))
    out = tmp_path / "report.html"
    write([tmp_path / name for name in counts], out)
    assert "size" in Page(out.read_text(encoding="utf-8")).ids
    for figure in ("gold", "bleu", "second_opinion"):
        text = (tmp_path / "report_data" / f"size_{figure}.csv").read_text()
        rows = [row for row in csv.reader(text.splitlines()) if row[0] == "PPO"]
        assert [float(row[1]) for row in rows] == [1e5, 1e6]
    assert [float(row[2]) for row in rows] == [0.1, 1.0]
    drawings = re.findall(r"<svg viewBox.*?</svg>", out.read_text("utf-8"), flags=re.DOTALL)
    drawing = next(svg for svg in drawings if "parameters of the policy" in svg)
    assert re.findall(r">([\d.]+[kM])<", drawing) == ["100k", "1M"] and "$" not in drawing
    write([tmp_path / "large"], out)
    assert "size" not in Page(out.read_text(encoding="utf-8")).ids


@pytest.mark.parametrize(
    "number, words",
    [
        (12, "12"),
        (999, "999"),
        (262_144, "262k"),
        (999_999, "1M"),
        (1_325_824, "1.33M"),
        (6e9, "6B"),
    ],
)
def test_large_numbers_have_a_unit(number, words):
    assert with_unit(number) == words


@pytest.mark.slow
def test_drawings_are_well_formed_and_described(full):
    drawings = re.findall(r"<svg viewBox.*?</svg>", full[0], flags=re.DOTALL)
    assert len(drawings) > 20
    for drawing in drawings:
        root = ElementTree.fromstring(
            drawing.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
        )
        assert root.get("role") == "img" and len(root.get("aria-label")) > 40
    assert "#0b62a8" not in "".join(drawings) and "var(--c0)" in "".join(drawings)


@pytest.mark.slow
def test_every_drawing_can_be_saved(full):
    text, folder = full
    links = re.findall(r'download="([^"]+)\.svg" href="data:image/svg\+xml;base64,([^"]+)"', text)
    assert len(links) == text.count('role="img"')
    assert {name for name, _ in links} == {p.stem for p in (folder / "report_data").glob("*.csv")}
    for _, data in links:
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")


def test_figures_and_tables_are_numbered_through(full):
    for word in ("Figure", "Table"):
        numbers = [int(n) for n in re.findall(rf'"number-of">{word} (\d+)\.<', full[0])]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 4


def test_model_text_is_escaped_and_otherwise_untouched(full):
    answers = Page(full[0]).answers
    assert answers[1] == XSS
    assert CHINESE in answers and XSS + CHINESE in answers
    assert "safe⟦U+202E⟧txt.exe⟦U+2066⟧" in answers and "\u202e" not in full[0]


def test_answers_are_of_the_extremes_and_of_a_random_draw(full):
    """Of the same prompt, in order of the gain; 8 gained and lost most, 24 are drawn."""
    samples = read_rows(full[1] / "chain" / "evaluate" / "samples.jsonl")
    before, after = ([r for r in samples if r["policy"] == p] for p in ("sft", "ppo"))
    gains = [b["gold"] - a["gold"] for a, b in zip(before, after, strict=True)]
    order = sorted(range(100), key=lambda i: -gains[i])
    losses = [i for i in reversed(order) if gains[i] < 0][:8]
    page = Page(full[0])
    shown = [page.answers[i : i + 3] for i in range(0, len(page.answers), 3)]
    row = lambda i: [before[i]["prompt"], before[i]["response"], after[i]["response"]]
    plain = [i for i in (*order[:8], *losses) if i > 2]  # the others hold marked characters
    assert [s for s in shown[: 8 + len(losses)] if "film 0" not in s[0]][2:] == [
        row(i) for i in plain
    ]
    assert len(shown) == 8 + len(losses) + 24
    assert page.tags.count("details") > 3 and "Largest losses" in full[0]
    assert "Random draw: 24 of the 100 held-out prompts of chain." in full[0]
    figures = f"gold {show(after[order[3]]['gold'], decimals=2)} "
    figures += f"({show(gains[order[3]], sign=True, decimals=2)}) · score"
    assert figures in full[0] and "· KL 4.20 · 22 tokens" in full[0]


def test_results_keep_the_interval_over_prompts(full):
    row = Page(full[0]).row("PPO")
    assert row[1] == "0.900 ± 0.030" and row[5] == "4.20 ± 0.20"
    assert "over prompts" in full[0]


def test_tax_is_the_change_from_pretraining(full):
    page = Page(full[0])
    assert page.row("pretraining")[1] == "4.400"
    assert page.row("PPO", 2)[1] == "4.600 (+0.200 ± 0.015)"
    assert "over the 32 batches of text of each corpus" in full[0]
    assert "its change from pretraining." in full[0]
    assert "0.800 on gutenberg" in full[0]  # (5.0 − 4.6) / (5.0 − 4.5)


def test_tax_without_pretraining_is_the_change_from_the_baseline():
    text = {m: {"eval/a/nats_per_token": TEXT[m]} for m in ("sft_without_mix", "sft", "ppo")}
    stages = {"evaluate": StageRecord({"baseline": "sft", "text": text}, [], [])}
    section = report_tax.tax_section([Group("g", [RunRecord("g", {}, [], stages)])])
    rows = {row[0]: row[1] for row in section.tables[0].rows}
    assert rows["SFT"] == "4.500" and rows["PPO"] == "4.600 (+0.100)"
    assert section.text[0].endswith("its change from SFT.")
    assert section.text[1] == "The evaluation did not record intervals of these changes."


def test_stages_say_what_they_took(full):
    row = Page(full[0]).row("pretraining", 1)
    assert row[1:4] == ["61.50", "8,000 tokens", "1,290"]
    assert row[4] == "gutenberg bits/byte 1.860, reviews bits/byte 1.860"
    assert row[5] == "0abcdef01234"


def test_reward_model_is_held_against_the_noise_ceiling(full):
    assert "Reward model: 0.710 of held-out pairs" in full[0] and "(gap 0.040)" in full[0]
    rows = read_csv(full[1] / "report_data" / "reward_pair_accuracy.csv")
    assert ["noise ceiling", "", "0.75", "", ""] in rows


def test_identity_of_the_run(full):
    page = Page(full[0])
    assert page.row("commit")[1] == "0123456789ab + local changes"
    assert page.row("seed")[1] == "0" and page.row("config digest")[1] == "feedfeedfeed"
    assert page.row("devices")[1] == "1 × cpu" and "jax 0.10.2" in page.row("versions")[1]
    assert "Missing" not in full[0]


@pytest.mark.slow
def test_same_records_same_bytes(full, tmp_path):
    text, folder = full
    write([folder / "chain"], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_stale_tables_are_removed_and_foreign_ones_are_not(tmp_path, undrawn):
    run, data = make_run(tmp_path / "run", 0, stages=2), tmp_path / "page_data"
    data.mkdir()
    (data / "participants.csv").write_text("name\nAnn\n")
    write([run], tmp_path / "page.html")
    (data / "notes.csv").write_text("mine")
    assert (data / "sft_loss.csv").exists()
    for _ in range(2):
        write([run / "pretrain"], tmp_path / "page.html")
        assert not (data / "sft_loss.csv").exists()
        found = {path.name for path in data.iterdir()}
        assert found > {"participants.csv", "notes.csv", "pretrain_loss.csv", "report_tables.txt"}
    assert (data / "participants.csv").read_text() == "name\nAnn\n"
    (data / "sft_loss.csv").write_text("mine")
    write([run / "pretrain"], tmp_path / "page.html")
    assert (data / "sft_loss.csv").exists(), "no longer on the list"


def test_csv_holds_every_logged_point(full):
    folder = full[1]
    rows = read_csv(folder / "report_data" / "ppo_kl_from_sft.csv")
    logged = read_rows(folder / "chain" / "ppo" / "metrics.jsonl")
    found = [(float(r[1]), float(r[2])) for r in rows if r[0] == "PPO"]
    assert found == [(row["step"], row["objective/kl"]) for row in logged]


def test_final_held_out_figure_ends_the_curve(full):
    rows = read_csv(full[1] / "report_data" / "sft_loss.csv")
    assert [row[:3] for row in rows if row[0] == "held out"][-1] == ["held out", "400.0", "4.18"]


def test_histograms_are_shares(full):
    rows = read_csv(full[1] / "report_data" / "distribution_gold.csv")
    for policy in ("SFT", "PPO"):
        assert sum(float(row[2]) for row in rows if row[0] == policy) == pytest.approx(1)


def test_calibration_bars_are_wilson_intervals():
    p, n, z = 0.8, 50, 1.959963984540054
    _, _, low, high = report_stages.reliability([{"predicted": 0.7, "observed": p, "count": n}])
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose([low[0], high[0]], [centre - half, centre + half])


# --- several runs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_seeds_are_one_group_with_an_interval_over_them(tmp_path, undrawn):
    folders = [make_run(tmp_path / f"s{seed}", seed) for seed in (0, 1)]
    (group,) = group_runs(folders)
    assert group.label == "s0, s1"
    write(folders, tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    golds = [
        json.loads((f / "evaluate" / "DONE").read_text())["policies"]["ppo"]["gold"]["mean"]
        for f in folders
    ]
    half = 12.7062047 * np.std(golds, ddof=1) / np.sqrt(2)  # t with one degree of freedom
    mean, ci = map(float, Page(text).row("PPO")[2].split(" ± "))
    assert (mean, ci) == (pytest.approx(np.mean(golds), abs=6e-3), pytest.approx(half, abs=6e-3))
    assert "over runs that differ in their seed only (n = 2)" in text
    assert Page(text).row("seed")[1:] == ["0", "1"]
    rows = read_csv(tmp_path / "both_data" / "ppo_kl_from_sft.csv")
    x, y, low, high = map(float, rows[1][1:])
    kls = [read_rows(f / "ppo" / "metrics.jsonl")[0]["objective/kl"] for f in folders]
    assert (x, y) == (1, pytest.approx(np.mean(kls)))
    assert high - low == pytest.approx(2 * 12.7062047 * np.std(kls, ddof=1) / np.sqrt(2))


@pytest.mark.slow
def test_other_configs_are_other_groups(tmp_path, undrawn):
    folders = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 1, kl_coef=0.5)]
    assert [group.label for group in group_runs(folders)] == ["kl.coef=0.25", "kl.coef=0.5"]
    write(folders, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.row("PPO · kl.coef=0.25")[1] == "0.900 ± 0.030"
    series = {row[0] for row in read_csv(tmp_path / "report_data" / "ppo_kl_from_sft.csv")[1:]}
    stages = "PPO", "PPO without ptx"
    assert series == {f"{s} · kl.coef={c}" for s in stages for c in (0.25, 0.5)}
    assert page.row("config")[1:] == ["kl.coef=0.25", "kl.coef=0.5"]


def test_half_a_seed_joins_its_group(tmp_path, undrawn):
    folders = [make_run(tmp_path / "s0", 0), make_run(tmp_path / "s1", 1, stages=2)]
    assert [len(group.runs) for group in group_runs(folders)] == [2]
    write(folders, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "interval over prompts" in text  # of the one run that was evaluated
    assert Page(text).row("PPO")[1] == "0.900 ± 0.030"


def test_the_same_seed_again_is_no_second_draw(tmp_path):
    seeds = {"a": 0, "b": 0, "c": 1}
    folders = [make_run(tmp_path / name, seed, stages=1) for name, seed in seeds.items()]
    assert [group.label for group in group_runs(folders)] == ["a, c", "b"]


def test_a_group_is_known_by_all_stages_of_its_runs(tmp_path):
    part = make_run(tmp_path / "part", 0, stages=2)
    full = [make_run(tmp_path / f"s{i}", i, kl_coef=c) for i, c in ((1, 0.25), (2, 0.5))]
    assert [len(group.runs) for group in group_runs([part, *full])] == [2, 1]


def test_band_counts_the_seeds_that_reached_a_step():
    values = np.array([[1.0, 2.0, 5.0], [3.0, 2.0, np.nan], [5.0, 8.0, np.nan]])
    mean, half = band(values)
    np.testing.assert_allclose(mean, [3, 4, 5])
    t = 4.30265273  # two degrees of freedom
    np.testing.assert_allclose(half[:2], t * np.std(values[:, :2], axis=0, ddof=1) / np.sqrt(3))
    assert np.isnan(half[2])


# --- partial and bad runs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "absent",
    [
        ("gold_difference", "gold_gain_in_sd", "win_rate_at_equal_length"),
        ("win_rate",),
        ("gold", "gold_difference"),
        ("score", "kl", "length", "ended", "distinct_2", "repeated_words", "judges"),
        ("perplexity_by_baseline",),
    ],
)
@pytest.mark.cases(1)
def test_figures_that_an_older_evaluation_did_not_record_are_no_failure(tmp_path, undrawn, absent):
    folder = make_run(tmp_path / "old", 0)
    path = folder / "evaluate" / "DONE"
    done = json.loads(path.read_text())
    del done["text_change"]
    for figures in done["policies"].values():
        for name in absent:
            del figures[name]
    path.write_text(json.dumps(done))
    for config in folder.glob("*/config.json"):
        record = json.loads(config.read_text())
        config.write_text(json.dumps({k: v for k, v in record.items() if k not in ("argv", "git")}))
    write([folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The command of this run was not recorded." in text
    assert "did not record intervals of these changes" in text
    assert ("whether it worked is not known" in text) == ("win_rate" in absent)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_partial_run_says_what_is_missing(tmp_path, undrawn, stages):
    write([make_run(tmp_path / "part", 0, stages=stages)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    absent = ", ".join(list(CHAIN)[stages:]) if stages < 5 else "evaluate"
    assert f"Missing in part: stages {absent}; summary.json." in text
    assert 'id="results"' not in text and 'id="pretrain"' in text
    assert ('id="answers"' in text) == (stages == 5) and ("r1" in Page(text).answers) is False


def test_unfinished_and_failed_stages_are_told_apart(tmp_path, undrawn):
    folder = make_run(tmp_path / "part", 0, stages=5)
    (folder / "ppo" / "DONE").unlink()
    (folder / "reward" / "FAILED").write_text("RunError: <b>loss</b> is nan")
    with open(folder / "ppo" / "metrics.jsonl", "a") as file:
        file.write('{"step": 29, "obj')  # torn by a kill
    write([folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the end of ppo (28 steps are logged)" in text
    assert "reward failed (RunError: &lt;b&gt;loss&lt;/b&gt; is nan)" in text


def test_single_stage_folder(tmp_path, undrawn):
    folder = make_run(tmp_path / "chain", 0, stages=2) / "sft"
    write([folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="sft"' in text and 'id="pretrain"' not in text and "Missing" not in text


def test_bad_input_writes_nothing(tmp_path):
    run, out = make_run(tmp_path / "run", 0, stages=1), tmp_path / "out" / "report.html"
    with pytest.raises(InputError, match=r"nowhere: expected a run folder"):
        write([run, tmp_path / "nowhere"], out)
    with pytest.raises(InputError, match="is a folder"):
        write([run], tmp_path)
    (run / "pretrain" / "DONE").write_text("{")
    with pytest.raises(InputError, match=r"DONE is not what a run has written there"):
        write([run], out)
    (run / "pretrain" / "DONE").unlink()
    (run / "pretrain" / "metrics.jsonl").write_text("[1\n{}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1: not JSON"):
        write([run], out)
    assert not out.parent.exists()


def test_without_matplotlib_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install .rlhf_jax\[report\]"):
        write([make_run(tmp_path / "run", 0, stages=1)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_command_line():
    config = load(ReportConfig, ["runs/a", "runs/b", "--out", "x.html"])
    assert [str(f) for f in config.folders] == ["runs/a", "runs/b"] and config.out.name == "x.html"


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure, text",
    [
        (None, "–"),
        (float("nan"), "–"),
        (-0.1234, "−0.123"),
        (12.345, "12.35"),
        (123456.7, "123,457"),
        (28, "28"),
        ({"mean": 12.3, "ci": 0.256}, "12.30 ± 0.26"),
        ({"mean": 0.5, "ci": float("nan")}, "0.500"),
        ({"mean": 0.72, "ci": 1e-17}, "0.720"),
    ],
)
def test_show(figure, text):
    assert show(figure) == text


def test_estimate_of_one_run_is_its_own():
    assert estimate([{"mean": 1.0, "ci": 0.5}, None]) == {"mean": 1.0, "ci": 0.5}
    assert estimate([None]) is estimate([{"mean": None}, {}]) is None
    assert estimate([{"mean": 1.0, "ci": 0.5}, 3.0])["mean"] == 2.0


def test_visible_marks_what_breaks_a_page():
    assert (
        visible("a\x00\x1b[31m\n\tb\ud800\u200dé中")
        == "a⟦U+0000⟧⟦U+001B⟧[31m\n\tb⟦U+D800⟧\u200dé中"
    )


def test_long_curves_are_thinned_in_the_drawing_only():
    x = list(range(5_000))
    y = np.random.default_rng(0).normal(size=5_000).tolist()
    panel = Panel("p", "P", "x", "y", [Series("s", x, y, None, None, "line", 0, 0)])
    assert len(draw(panel)) < 30_000 and len(to_csv(panel).splitlines()) == 5_001
    assert legend(panel) == []


def test_named_rows_run_from_the_top_with_intervals_across():
    series = Series("a", [0.2, 0.7], [0, 1], [0.1, 0.6], [0.3, 0.8], "dots", 0, 0)
    svg = draw(Panel("p", "t", "share", "", [series], rows=("first", "second")))
    height = lambda name: float(re.search(rf'y="([\d.]+)"[^>]*>{name}<', svg)[1])
    assert height("first") < height("second")
    bars = re.findall(r'd="M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)[^>]*stroke: var\(--c0\)', svg)
    assert len(bars) == 2 and all(y == other and x != end for x, y, end, other in bars)


def test_labels_cannot_leave_the_drawing():
    series = [Series(f'"><script>{i}', [0], [1.0], None, None, "dots", i, i) for i in (0, 1)]
    assert "<script" not in draw(Panel("p", 'a"><script>', "x", "y", series))


def test_one_policy_only_has_no_second_column():
    samples = [{"policy": "mine", "prompt": "p", "response": "r", "score": 1.0, "step": 0}]
    stages = {"evaluate": StageRecord(None, [], samples)}
    section = report_answers.samples_section([Group("g", [RunRecord("g", {}, [], stages)])])
    (table,) = section.samples
    assert table.policies == ["mine"] and table.rows[0][1][0].figures == "score 1.00"
