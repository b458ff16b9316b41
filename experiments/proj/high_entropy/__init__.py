"""PPO that clips the ratio higher above than below."""
