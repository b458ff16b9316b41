"""What reward and value heads start from (details 8 and 11 of N, 22 of N+); needs no torch."""

import jax
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.heads import make_policy_value, make_scalar_model

CONFIG = ModelConfig(n_layers=1, d_model=4096, n_heads=2)


def test_the_reward_head_starts_from_one_over_root_d_plus_one():
    """N(0, 1/√(d + 1)): 4096 draws know their spread to 1.1 %; the bias is 0."""
    head = make_scalar_model(CONFIG, 8).init(jax.random.key(0), {})["head"]
    assert abs(float(head["kernel"].std()) * np.sqrt(4097) - 1) < 0.04
    assert abs(float(head["kernel"].mean())) < 4 / 4097
    assert head["kernel"].shape == (4096, 1) and head["bias"].tolist() == [0.0]


def test_the_value_function_starts_as_the_reward_model_or_from_zero():
    reward = {"trunk": {"wte": jax.numpy.ones(3)}, "head": {"bias": jax.numpy.ones(1)}}
    policy = {"trunk": {"wte": jax.numpy.zeros(3)}}
    two = make_policy_value(CONFIG, CONFIG, 8, "separate").init(policy, reward)
    assert jax.tree.all(jax.tree.map(np.array_equal, two, {"policy": policy, "value": reward}))
    one = make_policy_value(CONFIG, CONFIG, 8, "shared").init(policy, reward)
    assert one.keys() == {"policy"}
    assert not any(x.any() for x in jax.tree.leaves(one["policy"]["head"]))
