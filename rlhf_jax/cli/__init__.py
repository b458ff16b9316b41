"""Command line → config: a preset file, then dotted overrides, with a hint for every slip.

    python -m experiments.ppo --config configs/quickstart.py --kl.coef 0.1
    python -m experiments.ppo --config=configs/gpt2_124m.py:seed=1 --config.kl.coef=0.1
    python -m experiments.ppo --config runs/x/ppo/config.json
    python -m experiments.ppo --task translation      # --config configs/tasks/translation.py
    python -m experiments.ppo --help                  # then --help optim, --help all

``command`` runs an experiment with what ``overrides`` makes of the words, ``subcommands`` one that
has several; ``presets`` finds the
config below them, ``flags`` says what is wrong with them, ``notes`` what has no effect, and
``saved`` writes a config and reads it again.
"""

from rlhf_jax.cli.command import main
from rlhf_jax.cli.fields import flag_names, flag_of
from rlhf_jax.cli.notes import say_idle, set_in
from rlhf_jax.cli.overrides import load, with_flags
from rlhf_jax.cli.presets import read_preset, take_preset
from rlhf_jax.cli.saved import from_dict, read_json, to_dict
from rlhf_jax.cli.subcommands import Subcommand, flags_for, main_of

__all__ = [
    "Subcommand",
    "flag_names",
    "flag_of",
    "flags_for",
    "from_dict",
    "load",
    "main",
    "main_of",
    "read_json",
    "read_preset",
    "say_idle",
    "set_in",
    "take_preset",
    "to_dict",
    "with_flags",
]
