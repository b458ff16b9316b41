"""Sampling from a policy, and scoring what was sampled."""
