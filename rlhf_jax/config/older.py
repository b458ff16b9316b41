"""Saved configs of earlier versions in today's form, so that their runs are read and resumed."""

import re
from typing import Any


def in_todays_form(saved: Any) -> dict[str, Any]:
    """A record (config.json of a run folder) as this version would have written it.

    Raises TypeError or KeyError for anything else.
    """
    if not isinstance(saved, dict):
        raise TypeError(f"found {type(saved).__name__}, expected an object")
    models = saved.get("models", {})
    if saved.get("stage") in ("ppo", "evaluate"):
        one = re.compile(r"^reward(?=$|\[settings)")
        models = {one.sub("reward[0]", name): model for name, model in models.items()}
    return {**saved, "config": _filled(saved["config"]), "models": models}


def _filled(config: Any) -> Any:
    """Until 0.1.0 PPO and evaluations had one reward model, and no warm-up was a share."""
    if not isinstance(config, dict):
        return config
    config = {name: _filled(value) for name, value in config.items()}
    if ("ppo_epochs" in config or "text_only" in config) and "reward" in config:
        reward = config["reward"]
        config["reward"] = [reward] if isinstance(reward, str) else reward or []
    if "warmup_steps" in config and "schedule" in config:
        config = {"warmup_share": 0.0, **config}
    return config
