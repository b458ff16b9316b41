"""PPO on the median of several reward models."""
