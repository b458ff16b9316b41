"""PPO without a value network: RLOO."""
