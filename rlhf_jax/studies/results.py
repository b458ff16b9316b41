"""A study's results: a row for each arm and seed, in one file that is small enough to be committed.

The page, its tables and its figure are made from rows alone, on any machine.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rlhf_jax.config import EvaluateConfig
from rlhf_jax.config.rewards import reward_names
from rlhf_jax.data.files import read_rows, write_atomically
from rlhf_jax.errors import InputError, check
from rlhf_jax.runs.kept_steps import figures_of
from rlhf_jax.runs.records import read_done, read_object
from rlhf_jax.studies.measures import Curves, Measured, Result
from rlhf_jax.studies.plan import Job, SeedPlan, needed
from rlhf_jax.studies.study import Arm, Study

Row = dict[str, Any]
FIELDS = ("arm", "seed", "figures", "digest", "runs", "data", "changes", "seconds")


def read_results(path: Path) -> list[Row]:
    """The rows of a results file; none where there is no file yet."""
    if not path.exists():
        return []
    rows = []
    for origin, row in read_rows(path):
        missing = [name for name in FIELDS if name not in row]
        check(not missing, f"{origin}: no {', '.join(missing)}, expected a row of a study")
        rows.append(row)
    pairs = [(row["seed"], row["arm"]) for row in rows]
    twice = sorted({pair for pair in pairs if pairs.count(pair) > 1})
    if twice:
        seed, arm = twice[0]
        raise InputError(f"{path}: two rows of arm {arm} and seed {seed}; expected one")
    return rows


def write_results(path: Path, rows: Sequence[Row], order: Sequence[str]) -> None:
    """All rows, by seed and by the arms' ``order``; all of the file, or what was there before."""
    place = {arm: n for n, arm in enumerate(order)}
    rows = sorted(rows, key=lambda row: (row["seed"], place.get(row["arm"], len(place))))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def check_current(path: Path, rows: Sequence[Row], plans: Mapping[int, SeedPlan]) -> None:
    """Raise InputError for a row of another config than the study has now, or of no arm of it."""
    stale, strange = [], set()
    for row in rows:
        known = plans[row["seed"]].digests
        if row["arm"] not in known:
            strange.add(row["arm"])
        elif row["digest"] != known[row["arm"]]:
            stale.append(f"{row['arm']} (seed {row['seed']})")
    advice = "take these rows out of the file to have them run anew, or give the study another name"
    check(
        not stale,
        f"{path}: stale rows, of other configs than the study file has now: {', '.join(stale)}; "
        f"{advice}",
    )
    check(
        not strange,
        f"{path}: rows of arms that the study file has not: {', '.join(sorted(strange))}; {advice}",
    )


def check_data(path: Path, rows: Sequence[Row], data: str) -> None:
    """Raise InputError for rows that were made from other data than lie here."""
    other = sorted({f"{r['arm']} (seed {r['seed']})" for r in rows if r["data"] != data})
    check(
        not other,
        f"{path}: rows made from other files of the task than this machine's ({data[:12]}): "
        f"{', '.join(other)}; expected the same data for all rows",
    )


def rows_of_seed(study: Study, plan: SeedPlan, job: Job, *, data: str) -> list[Row]:
    """The rows of an evaluation: of each arm whose policy it has measured."""
    summary = read_object(job.folder / "DONE", "policies", "baseline")
    record = read_object(job.folder / "config.json")
    jobs = {each.folder: each for each in plan.jobs}
    rows = []
    for arm in study.arms:
        if arm.name not in plan.digests:
            continue
        folder = plan.policies.get(arm.name)
        name = f"best_of_{arm.best_of}" if folder is None else folder.name
        # Its run failed; the seed's other arms keep their rows.
        if name not in summary["policies"]:
            continue
        curves = curves_of(study, plan, job, arm, summary.get("best_of_curve", {}))
        reward = plan.rewards.get(arm.name)
        measured = Measured(
            arm.name,
            without_scores(summary["policies"][name], job.config),
            summary["text"].get(name, {}),
            summary["text"].get(summary["baseline"], {}),
            read_done(folder or plan.sft) or {},
            curves,
            figures_of(reward) if reward else {},
        )
        # Of best-of-n the policy is the SFT model, and the reward model picks.
        made_from = [plan.sft, *(plan.evaluate.reward if folder is None else (folder,))]
        if study.best_of_curve and reward:
            made_from.append(reward)
        runs = [jobs[each] for each in sorted(needed(made_from, jobs))]
        rows.append(
            {
                "arm": arm.name,
                "seed": plan.seed,
                "changes": plan.changes[arm.name],
                # JSON has no NaN; a figure that is missing in a row is missing in the table.
                "figures": {k: v for k, v in study.measure(measured).items() if isfinite(v)},
                **({"curves": curves} if curves else {}),
                "seconds": seconds_of(runs, job, own=folder if arm.policy else None),
                "digest": plan.digests[arm.name],
                "runs": {each.folder.name: outcome(each) for each in runs},
                "data": data,
                "commit": commit_of(record),
                "machine": record.get("machine", ""),  # of an older version it is not known
                "devices": sorted({each.rpartition(" ")[2] for each in record["devices"]}),
            }
        )
    return rows


def without_scores(policy: Mapping[str, Any], config: EvaluateConfig) -> Mapping[str, Any]:
    """A policy's figures; without scores where those are of all arms' reward models as one."""
    if not config.best_of_curve:
        return policy
    of_all = ("score", "win_rate_by_reward_model")
    return {name: figure for name, figure in policy.items() if name not in of_all}


def curves_of(
    study: Study, plan: SeedPlan, job: Job, arm: Arm, best_of: Mapping[str, Sequence[Mapping]]
) -> Curves:
    """An arm's curves; ``best_of`` has those of the evaluation's reward models by their names."""
    curves: dict[str, dict[str, Any]] = {}
    if study.along and arm.policy is not None:
        curves["training"] = along(plan.policies[arm.name] / "metrics.jsonl", study.along)
    reward = plan.rewards.get(arm.name)
    if reward in job.config.reward and best_of:
        names = dict(zip(job.config.reward, reward_names(job.config.reward), strict=True))
        points = best_of[names[reward]]
        curves["best_of_n"] = {
            "n": [point["n"] for point in points],
            "kl": short(point["kl"] for point in points),
            "gold": short(point["gold"]["mean"] for point in points),
            "score": short(point["score"]["mean"] for point in points),
        }
    return curves


def along(path: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """The logged values of these metrics, of the rows that have them all."""
    logged = [row for _, row in read_rows(path)]
    for name in names:
        check(
            any(name in row for row in logged),
            f"{path}: no {name} is logged; expected one of "
            f"{', '.join(sorted({key for row in logged for key in row}))}",
        )
    rows = [row for row in logged if all(name in row for name in names)]
    return {name: short(row[name] for row in rows) for name in names}


def short(values: Iterable[float]) -> list[float]:
    """Five digits of each: a file of many curves is to be small."""
    return [float(f"{value:.5g}") for value in values]


def outcome(job: Job) -> str | None:
    """What tells that another machine has computed the same: the digest of its parameters."""
    return (read_done(job.folder) or {}).get("params_sha256")


def seconds_of(runs: Sequence[Job], evaluate: Job, *, own: Path | None) -> dict[str, float]:
    """What each stage took, the arm's own, in the folder ``own``, as ``arm``."""
    seconds_of_stage = {}
    for job in (*runs, evaluate):
        done = read_done(job.folder) or {}
        if "seconds" in done:
            seconds_of_stage["arm" if job.folder == own else job.label] = done["seconds"]
    return dict(sorted(seconds_of_stage.items()))


def commit_of(record: Mapping[str, Any]) -> str:
    """Twelve digits, with a plus where files differed from that commit; empty outside a clone."""
    git = record.get("git")
    return f"{git['sha'][:12]}{'+' * git['dirty']}" if git else ""


def results_of(rows: Sequence[Row]) -> dict[int, dict[str, Result]]:
    """{seed: {arm: result}}."""
    by_seed: dict[int, dict[str, Result]] = {}
    for row in rows:
        result = Result(row["figures"], row.get("curves", {}))
        by_seed.setdefault(row["seed"], {})[row["arm"]] = result
    return by_seed
