"""What arms share, and that they never share what differs."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs import quickstart
from configs.studies import details
from rlhf_jax.cli import say_idle, set_in
from rlhf_jax.config import PPOConfig
from rlhf_jax.errors import InputError
from rlhf_jax.studies.plan import evaluation, plan_seed
from rlhf_jax.studies.study import Arm, Study, read_study

ROOT = Path("runs/studies/x")
STUDIES = Path(__file__).parents[2] / "configs" / "studies"
SHIPPED = [path for path in sorted(STUDIES.glob("*.py")) if path.stem != "__init__"]


def study_of(*arms, **changes):
    fields = dict(question="?", base=quickstart.get_config(), baseline=arms[0].name)
    return Study(arms=arms, **fields | changes)


def ppo(chain):
    return chain.ppo


def other_rate(chain):
    return replace(chain.ppo, optim=replace(chain.ppo.optim, lr=1e-4))


def folders(plan):
    return {job.label: job.folder.name for job in plan.jobs}


def test_equal_arms_are_run_once_and_their_chain_too():
    plan = plan_seed(study_of(Arm("a", ppo), Arm("b", ppo), Arm("c", other_rate)), 0, ROOT)
    assert [job.label for job in plan.jobs] == [
        "pretrain",
        "sft",
        "comparisons",
        "reward",
        "a",
        "c",
    ]
    assert plan.policies["a"] == plan.policies["b"] != plan.policies["c"]
    assert plan.digests["a"] == plan.digests["b"] != plan.digests["c"]
    assert plan.changes == {"a": {}, "b": {}, "c": {"optim.lr": 1e-4}}


def changed(stage, **fields):
    def change(chain):
        return replace(chain, **{stage: replace(getattr(chain, stage), **fields)})

    return change


@pytest.mark.parametrize(
    "change,first",
    [
        (changed("pretrain", steps=999), "pretrain"),
        (changed("sft", epochs=3), "sft"),
        (changed("compare", num_prompts=100), "comparisons"),
        (changed("reward", epochs=2), "reward"),
        (lambda chain: replace(chain, task="sentiment_negative"), "pretrain"),
        (lambda chain: replace(chain, source=Path("elsewhere")), "pretrain"),
    ],
)
def test_what_differs_is_shared_by_nobody(change, first):
    """From the stage with the planted difference on nothing is shared, and before it all is."""
    plan = plan_seed(study_of(Arm("a", ppo), Arm("b", ppo, chain=change)), 0, ROOT)
    stages = ["pretrain", "sft", "comparisons", "reward"]
    labels = [job.label for job in plan.jobs]
    own = stages[stages.index(first) :]
    assert sorted(labels) == sorted([*stages, "a", *own, "b"])
    assert plan.digests["a"] != plan.digests["b"] and plan.changes["a"] == {}


def test_a_stage_is_planned_after_what_it_reads_and_knows_it():
    plan = plan_seed(study_of(Arm("a", ppo), Arm("sft"), Arm("b2", best_of=2)), 3, ROOT)
    before = set()
    for job in plan.jobs:
        assert set(job.needs) <= before and job.config.run.seed == 3
        before.add(job.folder)
    needs = {job.label: {each.name.partition("-")[0] for each in job.needs} for job in plan.jobs}
    assert needs["a"] == {"sft", "reward"} and needs["comparisons"] == {"sft"}
    job = evaluation(plan, [plan.policies["a"]], ROOT)
    assert job.config.policies == (plan.policies["sft"], plan.policies["a"])
    assert job.config.best_of == (1, 2)


def smaller(chain):
    model = replace(chain.pretrain.model, d_model=64)
    return replace(chain, pretrain=replace(chain.pretrain, model=model))


def test_a_reward_model_of_another_size_learns_from_the_arms_own_comparisons():
    arms = (Arm("a", ppo), Arm("b", ppo, reward_from=smaller))
    plan = plan_seed(study_of(*arms), 0, ROOT)
    made = [(job.label, job.folder) for job in plan.jobs]
    assert [label for label, _ in made].count("comparisons") == 1
    assert [label for label, _ in made].count("sft") == 2
    jobs = {job.folder: job for job in plan.jobs}
    rewards = [jobs[plan.rewards[arm]] for arm in "ab"]
    assert rewards[0].config.data == rewards[1].config.data
    small = jobs[rewards[1].config.init]
    assert small.label == "sft" and small.folder in rewards[1].needs
    assert jobs[small.config.init].config.model.d_model == 64
    # The policy is the same; what rewards it is not.
    a, b = (jobs[plan.policies[arm]].config for arm in "ab")
    assert a.init == b.init == plan.sft != small.folder and a.reward != b.reward
    assert plan.digests["a"] != plan.digests["b"]
    assert plan.changes == {"a": {}, "b": {"reward_from.pretrain.model.d_model": 64}}


def test_every_reward_model_measures_its_own_best_of_n():
    arms = (Arm("a", ppo), Arm("b", ppo, reward_from=smaller))
    plan = plan_seed(study_of(*arms, best_of_curve=(1, 4)), 0, ROOT)
    both = evaluation(plan, [*plan.policies.values()], ROOT)
    assert both.config.best_of_curve == (1, 4)
    assert both.config.reward == (plan.rewards["a"], plan.rewards["b"])
    # Of an arm whose run failed there is no row, and so no curve.
    one = evaluation(plan, [plan.policies["a"]], ROOT)
    assert one.config.reward == (plan.rewards["a"],)
    plain = plan_seed(study_of(*arms), 0, ROOT)
    assert evaluation(plain, [*plain.policies.values()], ROOT).config.reward == (
        plain.rewards["a"],
    )
    assert plain.digests["a"] != plan.digests["a"]


def test_an_arm_may_be_a_reward_model_alone_whose_best_of_n_is_measured():
    arms = (Arm("own"), Arm("smaller", reward_from=smaller))
    plan = plan_seed(study_of(*arms, best_of_curve=(1, 4)), 0, ROOT)
    assert [job.label for job in plan.jobs].count("reward") == 2
    job = evaluation(plan, [plan.sft], ROOT)
    assert job.config.reward == (plan.rewards["own"], plan.rewards["smaller"])
    assert {*job.config.reward} <= {*job.needs} and plan.digests["own"] != plan.digests["smaller"]


def test_arms_that_have_their_rows_need_nothing():
    study = study_of(Arm("a", ppo), Arm("sft"))
    assert "a" not in folders(plan_seed(study, 0, ROOT, arms=study.arms[1:]))


def test_digests_know_seeds_and_no_places(tmp_path):
    study = study_of(Arm("a", ppo), Arm("sft"))
    here, there, other = (plan_seed(study, *x) for x in ((0, ROOT), (0, tmp_path), (1, ROOT)))
    assert here.digests == there.digests and folders(here) == folders(there)
    assert all(here.digests[arm] != other.digests[arm] for arm in here.digests)


def test_files_of_the_user_count_by_their_contents(tmp_path):
    reward = tmp_path / "mine.py"

    def rewarded(chain):
        return replace(chain.ppo, reward=(Path(f"{reward}:score"),))

    def digest():
        return plan_seed(study_of(Arm("a", rewarded)), 0, ROOT).digests["a"]

    reward.write_text("def score(prompts, answers):\n    return [1.0] * len(answers)\n")
    first = digest()
    assert first == digest()
    reward.write_text("def score(prompts, answers):\n    return [2.0] * len(answers)\n")
    assert first != digest()


def test_how_arms_are_measured_counts():
    study = study_of(Arm("a", ppo))
    base = replace(study.base, evaluate=replace(study.base.evaluate, num_prompts=255))
    first, second = (plan_seed(each, 0, ROOT) for each in (study, replace(study, base=base)))
    assert folders(first) == folders(second) and first.digests != second.digests


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: study_of(Arm("a"), Arm("a")), "a is there twice"),
        (lambda: study_of(Arm("a"), baseline="b"), "baseline='b'"),
        (lambda: Arm("reward", ppo), "so is a stage of every chain called"),
        (lambda: Arm("a b"), "expected a name"),
        (lambda: Arm("a", ppo, best_of=4), "expected 2 or more, and no policy"),
        (lambda: plan_seed(study_of(Arm("a", lambda c: c.evaluate)), 0, ROOT), "EvaluateConfig"),
    ],
)
def test_what_is_no_study_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_file_without_a_study_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("")
    with pytest.raises(InputError, match=r"expected a function get_study\(\)"):
        read_study(file)
    file.write_text("def get_study():\n    return 1\n")
    with pytest.raises(InputError, match="get_study gives a int"):
        read_study(file)
    file.write_text("def get_study():\n    return 1 / 0\n")
    with pytest.raises(InputError, match="line 2: ZeroDivisionError"):
        read_study(file)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.slow
def test_arms_of_the_studies_that_ship_set_nothing_without_effect(path, capsys):
    for job in plan_seed(read_study(path), 0, ROOT).jobs:
        say_idle(job.config, set_in(job.config), "")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_each_detail_changes_what_it_says_and_nothing_else():
    plan = plan_seed(read_study(STUDIES / "details.py"), 0, ROOT)
    plain, folders = plan.changes["ppo"], list(plan.policies.values())
    for name, fields in details.DETAILS.items():
        changed = {
            field
            for field, value in plan.changes[name].items()
            if field not in plain or plain[field] != value
        }
        assert changed == {*fields}, name
    # No two are the same run, but for the SFT model's own.
    assert len({*folders}) == len(folders)


def test_the_frontier_holds_sampled_tokens_and_labels_equal():
    plan = plan_seed(read_study(STUDIES / "frontier.py"), 0, ROOT)
    jobs = {job.label: job for job in plan.jobs}
    sampled = [job.config for job in jobs.values() if isinstance(job.config, PPOConfig)]
    assert len(sampled) == 7
    assert len({(c.iterations, c.batch_size, c.response_length) for c in sampled}) == 1
    for arm in ("dpo", "ipo"):
        config, reward = jobs[arm].config, jobs["reward"].config
        assert (config.data, config.epochs) == (reward.data, reward.epochs)
