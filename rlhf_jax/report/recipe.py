"""How to make a run again, and how to cite it: commands, configs, references."""

from rlhf_jax.report.page import TITLES, Groups, Listing, RunRecord, Section

INSTRUCTGPT = """\
@inproceedings{ouyang2022training,
  title = {Training language models to follow instructions with human feedback},
  author = {Ouyang, Long and Wu, Jeffrey and Jiang, Xu and Almeida, Diogo and Wainwright, Carroll
            and Mishkin, Pamela and Zhang, Chong and Agarwal, Sandhini and Slama, Katarina and Ray,
            Alex and others},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {35},
  year = {2022}
}
"""


def recipe_section(groups: Groups) -> Section:
    """Commands and configs of all runs, and how to cite them."""
    runs = [run for group in groups for run in group.runs]
    listings = [listing for run in runs for listing in recipe_of(run, several=len(runs) > 1)]
    text = (
        "The commands below make the runs again, from the same data; a stopped one goes on with "
        "the same command. Sampled text, and so the last digits, also depend on the number and "
        "kind of devices.",
    )
    if not any(run.recipe.commands for run in runs):
        text = ("The command of this run was not recorded.",)
    cited = Listing("How to cite this run", reference_of(runs), folded=False)
    return Section("recipe", "How to make it again, and cite it", text, listings=(*listings, cited))


def recipe_of(run: RunRecord, *, several: bool) -> list[Listing]:
    """The commands, and the config of every stage."""
    recipe, of = run.recipe, f" of {run.name}" if several else ""
    listings = []
    if recipe.commands:
        lines = [f"git checkout {recipe.commit}"] if recipe.commit else []
        if recipe.local_changes:
            lines.append("# The code had local changes besides this commit.")
        lines += recipe.commands
        listings.append(Listing(f"Command{of}", "\n".join(lines), folded=False))
    for stage, fields in recipe.configs.items():
        title = f"Config{of}: {TITLES.get(stage, stage)}"
        listings.append(Listing(title, fields, folded=True))
    return listings


def reference_of(runs: list[RunRecord]) -> str:
    """BibTeX of the code at the runs' version and commit, and of the paper it follows."""
    commits = dict.fromkeys(run.recipe.commit for run in runs if run.recipe.commit)
    versions = dict.fromkeys(run.recipe.version for run in runs if run.recipe.version)
    years = sorted({run.facts["finished"][:4] for run in runs if "finished" in run.facts})
    changed = " with local changes" if any(run.recipe.local_changes for run in runs) else ""
    fields = {
        "title": "rlhf\\_jax: InstructGPT whole, in JAX/Flax",
        "author": "{The rlhf\\_jax authors}",
        "version": ", ".join(versions),
        "year": years[-1] if years else "",
        "note": f"Commit {', '.join(commits)}{changed}" if commits else "",
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return "@software{rlhf_jax,\n" + ",\n".join(lines) + "\n}\n\n" + INSTRUCTGPT
